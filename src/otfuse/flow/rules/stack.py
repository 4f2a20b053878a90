"""Stacks: layout operators act on every piece, unbind and select take pieces out, anything else joins them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otfuse.flow.algebra.value import Stacked, Value
from otfuse.flow.rules.operators import dimension_order, operator_name
from otfuse.flow.rules.registry import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx

    from otfuse.flow.rules.op import Op

_SAME = ("contiguous", "clone", "to", "dropout", "alias", "detach")
_DEPTH = 8


def unstacked_later(node: fx.Node, dim: int, depth: int = 0) -> bool:
    """Whether a later operator takes single indices of this dimension, with only layout operators in between."""
    rank = len(node.meta["val"].shape)
    for user in node.users:
        if not user.args or user.args[0] is not node or depth > _DEPTH:
            continue
        name = operator_name(user)
        if name in ("select", "unbind"):
            if (user.args[1] if len(user.args) > 1 else 0) % rank == dim:  # type: ignore[operator]
                return True
            continue
        place = _followed(name, user.args, rank, dim)
        if place is not None and unstacked_later(user, place, depth + 1):
            return True
    return False


def on_stack(op: Op) -> Any:
    """The result of an operator whose first argument is a stack, or UNKNOWN if the stack has to be joined."""
    stack = op.raw(0)
    rank = len(stack.pieces[0].axes) + 1
    if op.name in ("unbind", "select"):
        dim = op.arg_raw(1, 0) % rank
        if dim != stack.dim:
            return UNKNOWN
        return list(stack.pieces) if op.name == "unbind" else stack.pieces[op.arg_raw(2, 0) % len(stack.pieces)]
    if op.name in _SAME:
        return stack
    if op.name in ("transpose", "permute"):
        return _reordered(stack, op, rank)
    if op.name == "unsqueeze":
        return _unsqueezed(stack, op.arg_raw(1, 0) % (rank + 1))
    if op.name == "squeeze" and isinstance(op.arg_raw(1, None), int):
        return _squeezed(stack, op.arg_raw(1, 0) % rank)
    return UNKNOWN


def _followed(name: str, arguments: Sequence[Any], rank: int, dim: int) -> int | None:
    if name in ("transpose", "permute"):
        return dimension_order(name, arguments[1:], rank).index(dim)
    if name == "unsqueeze":
        return dim + int(arguments[1] % (rank + 1) <= dim)
    if name == "squeeze" and len(arguments) > 1 and isinstance(arguments[1], int):
        return dim - int(arguments[1] % rank < dim)
    return dim if name in _SAME else None


def _reordered(stack: Stacked, op: Op, rank: int) -> Stacked:
    order = dimension_order(op.name, [op.arg_raw(i, None) for i in range(1, len(op.node.args))], rank)
    inner = [d - (d > stack.dim) for d in order if d != stack.dim]
    return Stacked(order.index(stack.dim), tuple(p.relaid([p.axes[d] for d in inner], inner) for p in stack.pieces))


def _unsqueezed(stack: Stacked, dim: int) -> Stacked:
    place = stack.dim + (dim <= stack.dim)
    at = dim - (dim > place)
    return Stacked(place, tuple(p.with_axes([*p.axes[:at], (), *p.axes[at:]]) for p in stack.pieces))


def _squeezed(stack: Stacked, dim: int) -> Any:
    if dim == stack.dim:
        return UNKNOWN
    at = dim - (dim > stack.dim)
    return Stacked(stack.dim - (dim < stack.dim), tuple(_without(p, at) for p in stack.pieces))


def _without(piece: Value, at: int) -> Value:
    return piece.with_axes([*piece.axes[:at], *piece.axes[at + 1 :]])
