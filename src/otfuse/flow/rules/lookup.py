"""Reading rows by number: the rows are pinned, unless the numbers point into an axis that is itself followed."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch

from otfuse.core.space import Role
from otfuse.flow.algebra.value import Value
from otfuse.flow.rules.op import Op
from otfuse.flow.rules.operators import argument
from otfuse.flow.rules.origin import origin
from otfuse.flow.rules.registry import UNKNOWN, Family, rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otfuse.flow.algebra.axes import Axis


@rule("embedding", family=Family.LOOKUP)
def embedding(op: Op) -> Any:
    """``v d, ... -> ... d``."""
    table, index = op.value(0), op.value(1)
    op.roles(table, Role.PRODUCES)
    if (axis := _pointed(op, index, table.axes[0])) is not None:
        op.choose(origin(argument(op.node, 1, "indices")), axis, index.axes, table.axes[1:])
    else:
        op.algebra.pin(table.axes[0], "lookup")
    return Value((*index.axes, *table.axes[1:]), table.derived)


@rule("index", family=Family.LOOKUP)
def index(op: Op) -> Any:
    """Advanced indexing by whole tensors of numbers."""
    x, given = op.value(0), op.arg(1)
    places = [i for i, t in enumerate(given) if t is not None]
    if not all(isinstance(given[i], Value) for i in places):
        return UNKNOWN
    axis = _pointed(op, given[places[0]], x.axes[places[0]]) if len(places) == 1 else None
    if axis is not None:  # weights of the expert that each row was sent to
        op.choose(
            origin(argument(op.node, 1, "indices")[places[0]]),
            axis,
            given[places[0]].axes,
            [a for i, a in enumerate(x.axes) if i != places[0]],
        )
    else:
        op.mix(x, places)
        for i in places:
            op.algebra.pin(x.axes[i], "indexed")
    rows = op.broadcast([given[i] for i in places]).axes
    return Value(tuple(_indexed(x, places, rows)), x.derived, x.points)


@rule("gather", "index_select", "take_along_dim", family=Family.LOOKUP)
def gather(op: Op) -> Any:
    """Reading along one dimension; the other dimensions agree."""
    x, dim, places = op.value(0), op.arg(1), op.arg(2)
    spread = -1
    if op.name == "take_along_dim":  # the one that takes the numbers first, and spreads them
        dim, places, spread = places, dim, 1
    dim %= len(x.axes)
    op.mix(x, [dim])
    if _pointed(op, places, x.axes[dim]) is None:  # else scores of the experts that were chosen
        op.algebra.pin(x.axes[dim], "indexed")
    if op.name == "index_select":
        axis = places.axes[0] if places.axes else ()
        return x.with_axes((*x.axes[:dim], axis, *x.axes[dim + 1 :]))
    axes = list(places.axes)
    for i, own in enumerate(places.axes):
        size = op.algebra.size(own)
        if i != dim and size == spread:
            axes[i] = x.axes[i]
        elif i != dim:  # it may read less of them than there is
            axes[i] = op.algebra.unify(op.algebra.slice(x.axes[i], 0, size), own)
    return Value(tuple(axes), x.derived)


@rule("scatter", "scatter_", family=Family.PLACED)
def scattered(op: Op) -> Any:
    """Writing along one dimension by number, one value or a tensor's; the axis moves with numbers that point into it."""
    x, places, written = op.value(0), op.value(2), op.arg(3)
    dim = op.arg(1) % len(x.axes)
    values = written.axes if isinstance(written, Value) else places.axes
    op.mix(x, [dim])
    op.mix(Value(values), [dim])
    if _pointed(op, places, x.axes[dim]) is None:  # else a mask of the experts that were chosen
        op.algebra.pin(x.axes[dim], "indexed")
    for i, own in enumerate(x.axes):
        if i != dim:
            for other in (places.axes[i], values[i]):
                op.algebra.unify(op.algebra.slice(own, 0, op.algebra.size(other)), other)
    op.algebra.unify(op.algebra.slice(values[dim], 0, op.algebra.size(places.axes[dim])), places.axes[dim])
    return Value(x.axes, x.derived or places.derived or (isinstance(written, Value) and written.derived))


@rule("index_put", "index_put_", family=Family.PLACED)
def index_put(op: Op) -> Any:
    """Writing rows by number, or where a mask says: they are pinned, in what is written too; the other dimensions agree."""
    x, given, written = op.value(0), op.arg(1), op.value(2)
    places = [i for i, t in enumerate(given) if t is not None]
    if not all(isinstance(given[i], Value) for i in places):
        return UNKNOWN
    if _masks(op, 1):
        if len(places) != 1:
            return UNKNOWN
        mask = given[places[0]]
        places = list(range(places[0], places[0] + len(mask.axes)))
        for i, axis in zip(places, mask.axes, strict=True):
            op.algebra.unify(x.axes[i], axis)
        beside = len(x.axes) - places[-1]  # the number of the row, and what stands behind it
        rows: Sequence[Axis] = (
            written.axes[-beside : len(written.axes) - beside + 1] if len(written.axes) >= beside else [()]
        )
    else:
        rows = op.broadcast([given[i] for i in places]).axes
    op.mix(x, places)
    op.mix(written, range(len(written.axes)))
    for axis in (*(x.axes[i] for i in places), *rows):
        op.algebra.pin(axis, "indexed")
    for own, axis in zip(reversed(_indexed(x, places, rows)), reversed(written.axes), strict=False):
        op.algebra.unify(own, axis)
    return Value(x.axes, x.derived or written.derived)


@rule("masked_scatter", "masked_scatter_", family=Family.PLACED)
def masked_scatter(op: Op) -> Any:
    """Rows of a value written where a mask says, one after another: images among words.

    The mask says the same for all units of a place, so that a row is written whole; rows and places are told apart.
    """
    x, mask, written = op.value(0), op.value(1), op.value(2)
    width = op.algebra.size(x.axes[-1])
    count = prod(op.algebra.size(axis) for axis in written.axes)
    padded = ((),) * (len(x.axes) - len(mask.axes)) + mask.axes
    if width < 2 or count % width or not all(op.algebra.cell(a).wild for a in op.algebra.flat(padded[-1])):
        return UNKNOWN
    rows, units = op.algebra.view(written.axes, (count // width, width))
    places = list(range(len(x.axes) - 1))
    op.mix(x, places)
    op.mix(Value((rows, units)), [0])
    for i in places:
        op.algebra.pin(op.algebra.unify(x.axes[i], padded[i]), "indexed")
    op.algebra.pin(rows, "indexed")
    return Value((*x.axes[:-1], op.algebra.unify(x.axes[-1], units)), x.derived or written.derived)


def _pointed(op: Op, numbers: Value, axis: Axis) -> Axis | None:
    """The axis that numbers were chosen along, if it has that length, as one with the axis; else None."""
    if numbers.points is None or op.algebra.size(numbers.points) != op.algebra.size(axis):
        return None
    return op.algebra.unify(axis, numbers.points)


def _indexed(x: Value, places: Sequence[int], rows: Sequence[Axis]) -> list[Axis]:
    """The axes of what is read or written: rows of neighbouring dimensions stay in place, others come first."""
    rest = [axis for i, axis in enumerate(x.axes) if i not in places]
    at = places[0] if list(places) == list(range(places[0], places[-1] + 1)) else 0
    return [*rest[:at], *rows, *rest[at:]]


def _masks(op: Op, index: int) -> bool:
    """Whether places are given by masks, each of which covers as many dimensions as it has."""
    given = [node for node in op.node.args[index] if node is not None]  # type: ignore[union-attr]
    return any(node.meta["val"].dtype in (torch.bool, torch.uint8) for node in given)  # type: ignore[union-attr]
