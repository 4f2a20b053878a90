"""Operators that move elements and compute nothing."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from otfuse.flow.algebra.axes import Axis, MisfitError
from otfuse.flow.algebra.value import Stacked, Value
from otfuse.flow.rules.op import Op
from otfuse.flow.rules.operators import dimension_order
from otfuse.flow.rules.registry import Family, rule
from otfuse.flow.rules.stack import unstacked_later

if TYPE_CHECKING:
    from collections.abc import Sequence

_ENUMERATED_AT_MOST = 64  # a dimension that is taken apart index by index is small


def _wild(op: Op, size: int) -> Axis:
    return op.algebra.axis(size, wild=True)


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as", "ravel", family=Family.LAYOUT)
def view(op: Op) -> Any:
    """Row-major regrouping; a new dimension that is taken apart index by index later is kept piece by piece."""
    x, out = op.value(0), op.shape
    same = [op.algebra.size(a) for a in x.axes] == list(out)
    if same:
        return x.relaid(x.axes, range(len(out)))
    for dim, count in enumerate(out):
        if 1 < count <= _ENUMERATED_AT_MOST and unstacked_later(op.node, dim):
            stack = _stacked_view(op, x, out, dim)
            if stack is not None:
                return stack
    return x.with_axes(op.algebra.view(x.axes, out))


def _stacked_view(op: Op, x: Value, out: Sequence[int], dim: int) -> Stacked | None:
    """The view with dimension ``dim`` as a stack of pieces cut from the axis that holds it, if it lies inside one."""
    before, count, at, size = prod(out[:dim]), out[dim], 0, 1
    while at < len(x.axes) and size * op.algebra.size(x.axes[at]) <= before:
        size *= op.algebra.size(x.axes[at])
        at += 1
    if at == len(x.axes) or before % size:
        return None
    left, right, last = before // size, 1, dim
    length = op.algebra.size(x.axes[at])
    while last < len(out) and right < length // left:
        right *= out[last]
        last += 1
    if left * right != length or (right == count and left == 1):
        return None
    outer, rest = op.algebra.split_axis(x.axes[at], left) if left > 1 else ((), x.axes[at])
    cuts = op.cut(Value((rest,)), 0, [right // count] * count)
    sizes = [*out[:dim], *out[dim + 1 :]]
    pieces = [
        x.with_axes(op.algebra.view([*x.axes[:at], outer, cut.axes[0], *x.axes[at + 1 :]], sizes)) for cut in cuts
    ]
    return Stacked(dim, tuple(pieces))


@rule(
    "transpose", "swapaxes", "swapdims", "t", "mT", "numpy_T", "permute", "movedim", "moveaxis", family=Family.LAYOUT
)  # fmt: skip
def permute(op: Op) -> Any:
    """Dimensions in another order."""
    x = op.value(0)
    order = dimension_order(op.name, [op.arg(i) for i in range(1, len(op.node.args))], len(x.axes))
    return x.relaid([x.axes[d] for d in order], order)


@rule("view_as_complex", "view_as_real", family=Family.NONE)
def complex_view(op: Op) -> Any:
    """Real and imaginary part: a last dimension of two that is pinned, or gone."""
    x = op.value(0)
    if op.name == "view_as_real":
        return x.with_axes([*x.axes, op.algebra.axis(2, pin="stack")])
    op.algebra.pin(x.axes[-1], "stack")
    return x.with_axes(x.axes[:-1])


@rule("unsqueeze", family=Family.LAYOUT)
def unsqueeze(op: Op) -> Any:
    """A new dimension of size one."""
    x = op.value(0)
    dim, dims = op.arg(1) % (len(x.axes) + 1), list[int | None](range(len(x.axes)))
    return x.relaid([*x.axes[:dim], (), *x.axes[dim:]], [*dims[:dim], None, *dims[dim:]])


@rule("squeeze", family=Family.LAYOUT)
def squeeze(op: Op) -> Any:
    """Dimensions of size one disappear."""
    x, given = op.value(0), op.arg(1, "dim")
    rank = len(x.axes)
    named = range(rank) if given is None else [d % rank for d in ([given] if isinstance(given, int) else given)]
    kept = [d for d in range(rank) if not (d in named and op.algebra.size(x.axes[d]) == 1)]
    return x.relaid([x.axes[d] for d in kept], kept)


@rule("expand", "expand_as", "broadcast_to", family=Family.LAYOUT)
def expand(op: Op) -> Any:
    """Constant along what is new: wild."""
    x, shape = op.value(0), op.shape
    new = len(shape) - len(x.axes)
    padded = ((),) * new + x.axes
    axes = [axis if op.algebra.size(axis) == n else _wild(op, n) for axis, n in zip(padded, shape, strict=True)]
    return x.relaid(axes, [None] * new + list(range(len(x.axes))))


@rule("repeat", family=Family.LAYOUT)
def repeat(op: Op) -> Any:
    """The whole axis again and again: the number of the repetition is the outer, wild factor."""
    x, shape = op.value(0), op.shape
    padded = ((),) * (len(shape) - len(x.axes)) + x.axes
    axes = [_wild(op, n // max(op.algebra.size(a), 1)) + a for a, n in zip(padded, shape, strict=True)]
    return x.with_axes(axes)


@rule("repeat_interleave", family=Family.LAYOUT)
def repeat_interleave(op: Op) -> Any:
    """Every element several times: the number of the repetition is the inner, wild factor."""
    x, count = op.value(0), op.arg(1)
    given = op.arg(2, "dim", 0 if len(x.axes) == 1 else None)
    if not isinstance(count, int) or given is None:
        raise MisfitError("repeat_interleave by a tensor of counts, or of all dimensions")
    dim = given % len(x.axes)
    return x.with_axes([*x.axes[:dim], x.axes[dim] + _wild(op, count), *x.axes[dim + 1 :]])


@rule("cat", "concat", "concatenate", family=Family.LAYOUT)
def cat(op: Op) -> Any:
    """A sum along one dimension; the others are the same units. Numbers that all point into one axis still do."""
    parts, rank = [v for v in op.arg(0) if not (len(v.axes) == 1 and len(op.shape) > 1)], len(op.shape)
    dim = op.arg(1, "dim", 0) % rank
    axes = [op.unify([p.axes[i] for p in parts]) if i != dim else () for i in range(rank)]
    axes[dim] = op.algebra.concat([p.axes[dim] for p in parts])
    into = {None if p.points is None else tuple(op.algebra.leaves(p.points)) for p in parts}
    return Value(tuple(axes), any(p.derived for p in parts), parts[0].points if len(into) == 1 else None)


@rule("stack", family=Family.LAYOUT)
def stack(op: Op) -> Any:
    """A new, pinned dimension that numbers the parts."""
    parts = op.arg(0)
    dim, together = op.arg(1, "dim", 0) % len(op.shape), op.broadcast(parts)
    number = op.algebra.axis(len(parts), pin="stack")
    return together.with_axes([*together.axes[:dim], number, *together.axes[dim:]])


@rule("split", "split_with_sizes", "chunk", "unsafe_chunk", "unsafe_split", "tensor_split", family=Family.LAYOUT)
def split(op: Op) -> Any:
    """An axis cut into pieces."""
    x = op.value(0)
    dim = op.arg(2, "dim", 0) % len(x.axes)
    return op.cut(x, dim, [shape[dim] for shape in op.shapes])


@rule("unbind", family=Family.LAYOUT)
def unbind(op: Op) -> Any:
    """Every index of a dimension by itself: the dimension is pinned, the rest is shared by the pieces."""
    x = op.value(0)
    dim = op.arg(1, "dim", 0) % len(x.axes)
    op.algebra.pin(x.axes[dim], "enumerated")
    kept = [d for d in range(len(x.axes)) if d != dim]
    return [x.relaid([x.axes[d] for d in kept], kept) for _ in op.shapes]


@rule("select", family=Family.LAYOUT)
def select(op: Op) -> Any:
    """One index of a dimension: the axis is cut around it."""
    x = op.value(0)
    dim = op.arg(1) % len(x.axes)
    index = op.arg(2) % op.algebra.size(x.axes[dim])
    try:
        op.algebra.slice(x.axes[dim], index, index + 1)
    except MisfitError:
        op.algebra.pin(x.axes[dim], "selected")
    kept = [d for d in range(len(x.axes)) if d != dim]
    return x.relaid([x.axes[d] for d in kept], kept)


@rule("slice", "narrow", family=Family.LAYOUT)
def slice_(op: Op) -> Any:
    """A run of indices is a cut; a stride that divides the axis makes its inner factor pinned."""
    x = op.value(0)
    dim = op.arg(1, "dim", 0) % len(x.axes)
    length = op.algebra.size(x.axes[dim])
    if op.name == "narrow":
        start, stop, step = op.arg(2), op.arg(2) + op.arg(3), 1
    else:
        start, stop, step = op.arg(2, "start") or 0, op.arg(3, "end"), op.arg(4, "step", 1)
    start, stop, step = slice(start, stop, step).indices(length)
    if step == 1:
        try:
            return op.sliced(x, dim, start, stop)
        except MisfitError:
            op.algebra.pin(x.axes[dim], "sliced")
            axis = op.algebra.axis(op.shape[dim], pin="opaque")
    elif length % step == 0 and start < step and stop == length:
        axis, inner = op.algebra.split_axis(x.axes[dim], length // step)
        op.algebra.pin(inner, "strided")
    else:
        op.algebra.pin(x.axes[dim], "sliced")
        axis = op.algebra.axis(op.shape[dim], pin="opaque")
    return x.with_axes([*x.axes[:dim], axis, *x.axes[dim + 1 :]])


@rule("pad", "constant_pad_nd", family=Family.LAYOUT)
def pad(op: Op) -> Any:
    """A sum of the axis and pinned margins; a negative margin cuts."""
    x, margins, axes = op.value(0), op.arg(1), list(op.value(0).axes)
    if op.arg(2, "mode", "constant") not in ("constant", 0, 0.0):
        raise MisfitError("padding that repeats")
    for i in range(len(margins) // 2):
        dim, (left, right) = len(axes) - 1 - i, margins[2 * i : 2 * i + 2]
        length = op.algebra.size(axes[dim])
        own = op.algebra.slice(axes[dim], max(-left, 0), length + min(right, 0))
        before, after = ([op.algebra.axis(n, pin="padding")] if n > 0 else [] for n in (left, right))
        axes[dim] = op.algebra.concat([*before, own, *after])
    return x.with_axes(axes)


@rule("unfold", family=Family.LAYOUT)
def unfold(op: Op) -> Any:
    """Windows that lie end to end are two factors of the axis, the inner one last; windows that overlap pin it."""
    x, size, step = op.value(0), op.arg(2), op.arg(3)
    dim = op.arg(1) % len(x.axes)
    count = op.shape[dim]
    if step == size and count > 1:
        whole = op.algebra.slice(x.axes[dim], 0, count * size)
        outer, inner = op.algebra.split_axis(whole, count)
    else:
        op.algebra.pin(x.axes[dim], "unfolded")
        outer, inner = (op.algebra.axis(n, pin="opaque") for n in (count, size))
    return x.with_axes([*x.axes[:dim], outer, *x.axes[dim + 1 :], inner])


@rule("slice_scatter", "select_scatter", family=Family.NONE)
def scatter(op: Op) -> Any:
    """A tensor with a run of places (or one) of a dimension written over: the axis is cut there."""
    x, written = op.value(0), op.value(1)
    dim = op.arg(2, "dim", 0) % len(x.axes)
    length = op.algebra.size(x.axes[dim])
    if op.name == "select_scatter":
        start, stop, step = op.arg(3, "index") % length, op.arg(3, "index") % length + 1, 1
        axes = [*written.axes[:dim], (), *written.axes[dim:]]
    else:
        start, stop, step = slice(op.arg(3, "start"), op.arg(4, "end"), op.arg(5, "step", 1)).indices(length)
        axes = list(written.axes)
    if step != 1:
        raise MisfitError("writing with a stride")
    under = op.sliced(x, dim, start, stop)
    for own, axis in zip(under.axes, axes, strict=True):
        op.algebra.unify(own, axis)
    return Value(x.axes, x.derived or written.derived)


@rule("copy", family=Family.NONE)
def copy(op: Op) -> Any:
    """Values written over a tensor of the same shape."""
    return op.broadcast([op.value(0).with_axes([op.algebra.axis(n, wild=True) for n in op.shape]), op.value(1)])
