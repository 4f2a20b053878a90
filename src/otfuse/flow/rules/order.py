"""Operators in which the order of an axis means something, and reductions that forget the axis."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from otfuse.flow.algebra.value import Value
from otfuse.flow.rules.op import Op
from otfuse.flow.rules.operators import operator_name, reduced_dimensions
from otfuse.flow.rules.registry import UNKNOWN, Family, rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx


@rule("topk", family=Family.ORDER)
def topk(op: Op) -> Any:
    """Values without order, and numbers that point into the axis they were chosen from."""
    x = op.value(0)
    dim = op.arg(2, "dim", -1) % len(x.axes)
    source = x.axes[dim]
    op.mix(x, [dim])
    op.algebra.pin(source, "topk", soft=True)
    op.algebra.tag(source, "experts")
    axes = (*x.axes[:dim], op.algebra.axis(op.shape[dim], pin="opaque"), *x.axes[dim + 1 :])
    return [Value(axes, x.derived), Value(axes, x.derived, points=source)]


@rule("sort", "argsort", family=Family.ORDER)
def sort(op: Op) -> Any:
    """A sorted axis is a new axis; sorted numbers keep what they point into."""
    x, given = op.value(0), op.arg(1, "dim", -1)
    dim = (-1 if isinstance(given, bool) else given) % len(x.axes)
    op.mix(x, [dim])
    op.algebra.pin(x.axes[dim], "sorted", soft=True)
    axes = (*x.axes[:dim], op.algebra.axis(op.shape[dim], pin="opaque"), *x.axes[dim + 1 :])
    points = x.points if x.points is not None else None
    order = Value(axes, x.derived, points=None if points is not None else x.axes[dim])
    return order if op.name == "argsort" else [Value(axes, x.derived, points), order]


@rule("max", "min", "median", "kthvalue", "mode", family=Family.POINTWISE)
def extreme(op: Op) -> Any:
    """Along one dimension: the value, and its number, which points into the axis; else of all, or of two tensors."""
    x, given = op.value(0), op.arg(2 if op.name == "kthvalue" else 1, "dim")
    if isinstance(given, Value):  # the larger of two tensors
        return op.broadcast([x, given])
    dims = list(range(len(x.axes))) if given is None else [given % len(x.axes)]
    result = _forgotten(op, x, dims)
    if given is not None and any(user.args[1] == 1 and user.users for user in op.node.users):
        op.algebra.pin(x.axes[dims[0]], op.name, soft=True)
    return result if given is None else [result, replace(result, points=x.axes[dims[0]])]


@rule("argmax", "argmin", family=Family.ORDER)
def number_of_extreme(op: Op) -> Any:
    """The number of the extreme points into the axis; among all of them, it tells every axis."""
    x, given = op.value(0), op.arg(1, "dim")
    dims = list(range(len(x.axes))) if given is None else [given % len(x.axes)]
    result = _forgotten(op, x, dims)
    for d in dims:
        op.algebra.pin(x.axes[d], op.name, soft=given is not None)
    return result if given is None else replace(result, points=x.axes[dims[0]])


def _forgotten(op: Op, x: Value, dims: Sequence[int]) -> Value:
    """What is left where these dimensions are summed over, or kept with length one."""
    for d in dims:
        rest = [a for i, a in enumerate(x.axes) if i != d]
        op.contract(x.axes[d], rest, [a for i, a in enumerate(x.axes) if i not in dims])
    keep = len(op.shape) == len(x.axes)
    return x.with_axes([() if i in dims else a for i, a in enumerate(x.axes) if keep or i not in dims])


@rule("histc", family=Family.ORDER)
def histogram(op: Op) -> Any:
    """How often every place of an axis is pointed at."""
    x = op.value(0)
    if x.points is None or op.algebra.size(x.points) != op.shape[0]:
        return UNKNOWN
    return Value((x.points,), derived=True)


@rule("cumsum", "cumprod", "cummax", "logcumsumexp", "flip", "roll", "diff", family=Family.ORDER)
def ordered(op: Op) -> Any:
    """The named dimensions are pinned; what stands beside them passes, but is mixed along them.

    Their order is known to matter (no trial frees them), but where counts are summed to the ends of groups of rows.
    """
    x = op.value(0)
    if op.name == "diff" and any(op.arg(i, name) is not None for i, name in ((3, "prepend"), (4, "append"))):
        return UNKNOWN
    position = 2 if op.name in ("roll", "diff") else 1
    given = op.arg(position, "dims" if op.name in ("roll", "flip") else "dim", -1 if op.name == "diff" else None)
    given = [given] if isinstance(given, int) else given
    dims = [d % len(x.axes) for d in given] if given else list(range(len(x.axes)))
    op.mix(x, dims)
    for d in dims:
        op.algebra.pin(x.axes[d], op.name, soft=_ends_of_groups(op.node))
    axes = [
        op.algebra.axis(op.shape[d], pin="opaque") if d in dims and op.name == "diff" else a
        for d, a in enumerate(x.axes)
    ]
    result = x.with_axes(axes)
    return [result, result] if op.name == "cummax" else result  # values, and where they stood


def _ends_of_groups(node: fx.Node) -> bool:
    """Whether grouped products read the result, and nothing else, as the places where groups of rows end."""
    users = [user for user in node.users if not operator_name(user).startswith("_assert")]
    return bool(users) and all(
        _ends_of_groups(user) if operator_name(user) in ("to", "_to_copy") else "grouped_mm" in operator_name(user)
        for user in users
    )


@rule(
    "mean", "sum", "amax", "amin", "var", "std", "logsumexp", "norm", "any", "all", "linalg_vector_norm", "prod",
    "count_nonzero",
    family=Family.REDUCTION,
)  # fmt: skip
def reduction(op: Op) -> Any:
    """The axis is summed over."""
    x = op.value(0)
    return _forgotten(op, x, reduced_dimensions(op.node, len(x.axes)))


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d",
    "upsample_bicubic2d", "_upsample_bilinear2d_aa",
    family=Family.POOL,
)  # fmt: skip
def pool(op: Op) -> Any:
    """Channels pass, places are pinned."""
    x = op.value(0)
    count = 1 if op.name.endswith("1d") else 3 if op.name.endswith("3d") else 2
    op.mix(x, range(len(x.axes) - count, len(x.axes)))
    for axis in x.axes[-count:]:
        op.algebra.pin(axis, "spatial")
    places = [op.algebra.axis(n, pin="spatial") for n in op.shape[-count:]]
    result = x.with_axes((*x.axes[:-count], *places))
    return [result, result] if len(op.shapes) > 1 else result  # values, and where they stood
