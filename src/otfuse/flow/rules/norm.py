"""Norms: the axis stays what it is; gain, bias and running statistics are members of it."""

from __future__ import annotations

from typing import Any

from otfuse.core.space import Role
from otfuse.flow.algebra.value import Value
from otfuse.flow.rules.op import Op
from otfuse.flow.rules.registry import Family, rule


def _join(op: Op, x: Value, dim: int, item: Any, axis: int, role: Role) -> None:
    if isinstance(item, Value):
        op.role(item, axis, role)
        op.algebra.unify(x.axes[dim], item.axes[axis])


@rule("layer_norm", "rms_norm", family=Family.NORM)
def layer_norm(op: Op) -> Any:
    """Gain and bias over the last dimensions."""
    x, count = op.value(0), len(op.arg(1))
    first = len(x.axes) - count
    for i in range(count):
        _join(op, x, first + i, op.arg(2, "weight"), i, Role.SCALES)
        if op.name == "layer_norm":
            _join(op, x, first + i, op.arg(3, "bias"), i, Role.PRODUCES)
        rest = [a for d, a in enumerate(x.axes) if d != first + i]
        op.contract(x.axes[first + i], rest, x.axes[:first])
    return x.with_axes(x.axes)


@rule("batch_norm", "instance_norm", family=Family.NORM)
def batch_norm(op: Op) -> Any:
    """Gain, bias, running mean and variance over the channels (dimension 1)."""
    x = op.value(0)
    for index, role in ((1, Role.SCALES), (2, Role.PRODUCES), (3, Role.PRODUCES), (4, Role.SCALES)):
        _join(op, x, 1, op.arg(index), 0, role)
    if op.name == "instance_norm" or (op.name == "batch_norm" and op.arg(5)):  # statistics of these very values
        op.mix(x, [*([0] if op.name == "batch_norm" else []), *range(2, len(x.axes))])
    return x.with_axes(x.axes)


@rule("_native_batch_norm_legit_no_training", family=Family.NONE)
def native_batch_norm(op: Op) -> Any:
    """The same after decomposition; its saved statistics are empty."""
    return [batch_norm(op), *(op.opaque(shape, derived=False) for shape in op.shapes[1:])]


@rule("group_norm", family=Family.NORM)
def group_norm(op: Op) -> Any:
    """Channels are groups times channels of a group."""
    x = op.value(0)
    groups, within = op.algebra.split_axis(x.axes[1], op.arg(1))
    for axis in (within, *x.axes[2:]):
        op.contract(axis, [a for a in (x.axes[0], groups, within, *x.axes[2:]) if a is not axis], [x.axes[0], groups])
    _join(op, x, 1, op.arg(2, "weight"), 0, Role.SCALES)
    _join(op, x, 1, op.arg(3, "bias"), 0, Role.PRODUCES)
    return x.with_axes(x.axes)


@rule("_weight_norm", family=Family.NONE)
def weight_norm(op: Op) -> Any:
    """A weight divided by its norm over all dimensions but one, times a gain along that one."""
    x, gain = op.value(0), op.value(1)
    dim = op.arg(2, "dim", 0) % len(x.axes)
    op.roles(gain, Role.SCALES)
    op.algebra.unify(x.axes[dim], gain.axes[dim])
    for d, axis in enumerate(x.axes):
        if d != dim:
            op.contract(axis, [a for i, a in enumerate(x.axes) if i != d], [x.axes[dim]])
    return x
