"""The record of one example: a tiny model, inputs for it, and the spaces that theory expects."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    Inputs = tuple[Tensor, ...] | dict[str, Tensor]
    Build = Callable[[], nn.Module]

TERM = re.compile(r"(\d+)x(\d+)(?:/(\d+))?")


@dataclass(frozen=True, slots=True)
class Example:
    """A tiny model that the flow graph is tried on.

    ``spaces`` are the free spaces that theory expects, written ``count x size / copies`` as in ``"1x24 2x4 4x6/4"``, and
    ``rotary`` likewise the spaces of rotary pairs. ``spaces`` is None where no list is fixed: then what is free obeys the
    law, or deriving raises :class:`otfuse.errors.RuleError`, which it must where ``refused``. ``from_config`` says that
    the inputs can also be made from the model's Hugging Face config.
    """

    name: str
    module: Build
    inputs: Callable[[], Inputs]
    spaces: str | None = None
    rotary: str = ""
    refused: bool = False
    from_config: bool = False
    note: str = ""

    def build(self, seed: int = 0) -> tuple[nn.Module, Inputs]:
        """The model in eval mode with every stored value drawn from ``seed``, and inputs that do not depend on it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # constructors draw from the global generator; what they draw is replaced
            module = self.module().eval()
        return randomise(module, seed), self.inputs()

    @property
    def expected(self) -> Counter[tuple[int, int]]:
        """Free spaces as a multiset of (size, copies)."""
        return multiset(self.spaces or "")

    @property
    def expected_rotary(self) -> Counter[tuple[int, int]]:
        """Spaces of rotary pairs as a multiset of (size, copies)."""
        return multiset(self.rotary)


def multiset(text: str) -> Counter[tuple[int, int]]:
    """``"2x4 4x6/4"`` as ``Counter({(4, 1): 2, (6, 4): 4})``; ValueError if a term is malformed."""
    result: Counter[tuple[int, int]] = Counter()
    for term in text.split():
        match = TERM.fullmatch(term)
        if match is None:
            msg = f"{term!r} is not written as count x size / copies"
            raise ValueError(msg)
        count, size, copies = match.groups(default="1")
        result[int(size), int(copies)] += int(count)
    return result


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Draw every floating parameter and persistent buffer of ``module`` in place from ``seed``; returns the module.

    Gains lie in 0.5..1.5, variances in 0.5..2, biases are normal of deviation 0.3 and matrices normal with the
    deviation that keeps the size of what they read: no value keeps a default that could hide a mistake.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in stored(module).items():
            tensor.copy_(_draw(name.rpartition(".")[2], tensor, generator))
    return module


def stored(module: nn.Module) -> Mapping[str, Tensor]:
    """Floating tensors that a checkpoint of ``module`` holds, under the first of their names."""
    first: dict[int, tuple[str, Tensor]] = {}
    keep = module.state_dict(keep_vars=True)
    for name, tensor in keep.items():
        if tensor.is_floating_point():
            first.setdefault(id(tensor), (name, tensor))
    return dict(first.values())


def _draw(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    shape = tensor.shape
    uniform, normal = torch.rand(shape, generator=generator), torch.randn(shape, generator=generator)
    if name == "running_var":
        return 0.5 + 1.5 * uniform
    if tensor.ndim < 2:
        return 0.3 * normal if "bias" in name or name == "running_mean" else 0.5 + uniform
    fan = max(shape[1:]) if tensor.ndim == 3 else math.prod(shape[1:])
    return normal / math.sqrt(fan)


def tokens(batch: int, length: int, vocabulary: int, seed: int = 0, first: int = 4) -> Tensor:
    """``[batch, length]`` token ids, distinct within a row, none below ``first`` (special tokens)."""
    generator = torch.Generator().manual_seed(seed)
    rows = [first + torch.randperm(vocabulary - first, generator=generator)[:length] for _ in range(batch)]
    return torch.stack(rows)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal values of that shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
