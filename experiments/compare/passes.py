"""How many examples went forward through a model of the parents' size while a row was made, tracing and trials included."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves

from otfuse.program.cut import Cut
from otfuse.program.run import Runner

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn


class Passes:
    """``examples`` counts every example once for each pass through all layers, with or without a backward pass behind it."""

    examples = 0

    def wrapped(self, call: Any) -> Any:
        """A call that is counted: examples are what its first tensor holds along dimension 0."""

        @functools.wraps(call)
        def counted(own: Any, *args: Any, **kwargs: Any) -> Any:
            tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.dim()]
            weights = {id(x) for value in args[:1] if isinstance(value, dict) for x in value.values()}
            given = [x for x in tensors if id(x) not in weights]
            self.examples += len(given[0]) if given else 1
            return call(own, *args, **kwargs)

        return counted


@contextmanager
def counting(parents: Sequence[nn.Module]) -> Iterator[Passes]:
    """Count what runs through the modules themselves and through their traced programs."""
    passes = Passes()
    places = [
        *((cls, "forward") for cls in {type(m) for m in parents}),
        (Runner, "__call__"),
        (Runner, "watch"),
        (Cut, "begin"),
    ]
    before = [(cls, name, getattr(cls, name)) for cls, name in places]
    for cls, name, call in before:
        setattr(cls, name, passes.wrapped(call))
    try:
        yield passes
    finally:
        for cls, name, call in before:
            setattr(cls, name, call)
