"""A module as it is traced: it returns what it is for, and what it asked of its inputs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils._pytree import tree_leaves

from otfuse.program.inputs import forward_keywords
from otfuse.program.known import Known
from otfuse.program.outputs import distributions, named_outputs

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


class Main(nn.Module):
    """The module, returning only what it is for.

    If ``example`` (the inputs' leaves) is given, questions about values are answered with it, and what was asked comes out
    behind the outputs. ``after`` is called with the answers, and with which outputs are logits, when it has run (torch may run
    a copy of this).
    """

    def __init__(
        self,
        model: nn.Module,
        after: Callable[[list[torch.Tensor], tuple[bool, ...]], None],
        example: list[Any] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.after, self.example = model, after, example
        self.keywords = forward_keywords(model)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        """The outputs, then what was asked."""
        with contextlib.nullcontext() if self.example is None else self._known(args, kwargs) as known:
            named = named_outputs(self.model(*args, **(self.keywords | kwargs)))
        asked = [] if known is None else known.asked
        self.after([answer for _, answer in asked], distributions(self.model, named))
        return (*(tensor for _, tensor in named), *(tensor for tensor, _ in asked))

    def _known(self, args: Any, kwargs: Any) -> Known:
        assert self.example is not None
        return Known(zip(tree_leaves((args, kwargs)), self.example, strict=True))
