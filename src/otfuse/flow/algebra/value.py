"""What the interpreter knows of a tensor: the factors of its axes, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from otfuse.flow.algebra.axes import Axis


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """An abstract tensor: one axis per dimension.

    ``derived``: it depends on a parameter. ``points``: the axis its integers point into. ``tensor`` and ``dims``: it is
    that stored tensor up to layout, dimension ``i`` being its axis ``dims[i]`` (None: not one axis of it).
    ``stored``: it is the stored tensor itself, shared by all its uses, so that its wild leaves are not renamed.
    """

    axes: tuple[Axis, ...]
    derived: bool = False
    points: Axis | None = None
    tensor: str | None = None
    dims: tuple[int | None, ...] = ()
    stored: bool = False

    def with_axes(self, axes: Sequence[Axis]) -> Value:
        """Another layout or content of the same origin: which axis of a stored tensor is which is not followed."""
        return replace(self, axes=tuple(axes), dims=(None,) * len(axes), stored=False)

    def relaid(self, axes: Sequence[Axis], dims: Sequence[int | None]) -> Value:
        """The same tensor with its dimensions reordered: new dimension ``i`` was old dimension ``dims[i]``."""
        mine = self.dims or (None,) * len(self.axes)
        kept = tuple(None if d is None else mine[d] for d in dims)
        return replace(self, axes=tuple(axes), dims=kept, stored=False)


@dataclass(frozen=True, slots=True, eq=False)
class Stacked:
    """A tensor given piece by piece along dimension ``dim`` (a fused projection viewed as 3 x heads x units)."""

    dim: int
    pieces: tuple[Value, ...]


def values_in(item: Any) -> Iterator[Value]:
    """Every abstract tensor in a value, a stack or nested sequences of them."""
    if isinstance(item, Value):
        yield item
    elif isinstance(item, Stacked):
        yield from item.pieces
    elif isinstance(item, (tuple, list)):
        for part in item:
            yield from values_in(part)
