"""The law of the product, checked from its sentence alone: nothing here reads how the graph was derived.

Whoever permutes ``positions`` in every member of a space that is not pinned (and whose group is not rotary), with one
permutation per copy, gets an equal model. The original module runs in float64 on weights drawn anew; casts to float32
inside it are kept in float64, or rounding would hide what is looked for.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from otfuse.core.space import Member, Space
    from otfuse.testing.record import Inputs

    Order = NDArray[np.int64]
    Move = tuple[Sequence[Member], Order]

EXACT = 1e-9  # relative change of an equal model in float64
MOVED = 1e-6  # relative change that counts as one


class Bench:
    """A float64 copy of a model with weights drawn from ``seed``, and what it answers to ``inputs``."""

    def __init__(self, model: nn.Module, inputs: Inputs, seed: int = 0) -> None:
        self.model = copy.deepcopy(model).double().eval()
        self.args, self.kwargs = (inputs, {}) if isinstance(inputs, tuple) else ((), inputs)
        stored = self.model.state_dict(keep_vars=True)
        self.state = {name: tensor for name, tensor in stored.items() if tensor.is_floating_point()}
        generator, drawn = torch.Generator().manual_seed(seed), set[int]()
        with torch.no_grad():
            for name, tensor in self.state.items():
                if id(tensor) not in drawn:
                    drawn.add(id(tensor))
                    tensor.copy_(_fresh(name, tensor, generator))
        self.weights = {id(tensor): tensor.detach().clone() for tensor in self.state.values()}
        self.reference = self.run()
        if not all(bool(torch.isfinite(y).all()) and float(y.std()) > 0 for y in self.reference):
            raise ValueError("the outputs are constant or not finite: nothing can be seen on these inputs")

    def run(self) -> list[Tensor]:
        """The outputs that count, with the weights as they stand."""
        args, kwargs = tree_map(_widen, (self.args, self.kwargs))
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with torch.no_grad(), _Double():  # type: ignore[no-untyped-call]
                return _counting(self.model(*args, **kwargs))
        finally:
            torch.set_default_dtype(default)

    def change(self, moves: Iterable[Move]) -> float:
        """Largest relative change of an output after these moves (members, ``order[copies, size]``), undone at the end."""
        touched = set[str]()
        with torch.no_grad():
            for members, order in moves:
                for member in members:
                    tensor = self.state[member.tensor]
                    tensor.copy_(permuted(tensor, member, order))
                    touched.add(member.tensor)
            outputs = self.run()
            for name in touched:
                self.state[name].copy_(self.weights[id(self.state[name])])
        return max(float((a - b).norm() / b.norm()) for a, b in zip(outputs, self.reference, strict=True))


def permuted(tensor: Tensor, member: Member, order: Order) -> Tensor:
    """``tensor`` with unit ``u`` of copy ``c`` taken from where unit ``order[c, u]`` was."""
    axis, out = member.axis, tensor.clone()
    for copy_, (places, row) in enumerate(zip(member.positions, order, strict=True)):
        index = torch.arange(tensor.shape[axis])
        index[torch.from_numpy(places.ravel())] = torch.from_numpy(places[row].ravel())
        if member.batch_axis is None:
            out = out.index_select(axis, index)
        else:
            whole = out.index_select(axis, index)
            out.select(member.batch_axis, copy_).copy_(whole.select(member.batch_axis, copy_))
    return out


def derangements(space: Space, seed: int = 0) -> Order:
    """One permutation per copy, ``[copies, size]``, none of which leaves a unit where it was."""
    generator = np.random.default_rng([seed, space.size, space.copies])
    rows = []
    for _ in range(space.copies):
        row = generator.permutation(space.size)
        while (row == np.arange(space.size)).any():
            row = generator.permutation(space.size)
        rows.append(row)
    return np.stack(rows)


def moves(spaces: Iterable[Space], seed: int = 0) -> list[Move]:
    """A random element of every space."""
    return [(space.members, derangements(space, seed + i)) for i, space in enumerate(spaces)]


class _Double(TorchDispatchMode):
    """Operators asked for float32 give float64; a kernel that knows no float64 is written out."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda x: torch.float64 if x is torch.float32 else x, (args, kwargs or {}))
        return _grouped(*args, **kwargs) if "_grouped_mm" in str(func) else func(*args, **kwargs)


def _grouped(x: Tensor, weight: Tensor, offs: Tensor, *_: Any, **__: Any) -> Tensor:
    """Rows ``offs[g - 1] : offs[g]`` of ``x[rows, n]`` times ``weight[g, n, m]``."""
    ends = [int(end) for end in offs.tolist()]
    return torch.cat([x[a:b] @ weight[g] for g, (a, b) in enumerate(zip([0, *ends[:-1]], ends, strict=True))])


def _widen(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _fresh(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Values without a default: no zeros, no ones, variances positive."""
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    if tensor.ndim < 2:
        return 0.4 + noise.abs() if name.endswith("_var") else 0.5 * noise + float(tensor.mean() > 0.4)
    fan = max(tensor.shape[1:]) if tensor.ndim == 3 else math.prod(tensor.shape[1:])
    return noise / math.sqrt(fan)


def _counting(result: Any) -> list[Tensor]:
    """The floating outputs that count: logits where a model has them, else all that is not a by-product."""
    if hasattr(result, "keys"):
        names = [n for n in result if "logits" in n] or [
            n for n in result if n in ("last_hidden_state", "pooler_output")
        ]
        return [result[n] for n in names]
    return [result] if isinstance(result, torch.Tensor) else [y for y in result if y.is_floating_point()]
