"""Operators that work element by element: they force equal positions to be the same units, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from otfuse.core.space import Role
from otfuse.flow.algebra.value import Value
from otfuse.flow.rules.op import Op
from otfuse.flow.rules.registry import Family, rule

_PRODUCTS = ("mul", "mul_", "div", "div_", "multiply", "divide", "true_divide")


@rule(
    "dropout", "dropout_", "feature_dropout", "alias", "clone", "contiguous", "detach", "detach_",
    "to", "_to_copy", "type_as", "lift_fresh_copy",
    family=Family.KEEP,
)  # fmt: skip
def keep(op: Op) -> Any:
    """The same tensor; chance that is not off tells places apart."""
    x = op.value(0)
    if "dropout" in op.name and op.arg(2, "train", default=False):
        for axis in x.axes:
            op.algebra.pin(axis, "random")
    return x


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", family=Family.POINTWISE)
def softmax(op: Op) -> Any:
    """Equivariant under permutations along its own dimension, which it mixes; elementwise along the others."""
    x = op.value(0)
    if x.axes:
        op.mix(x, [op.arg(1, "dim", -1)])
    return x.with_axes(x.axes)


@rule(
    "pointwise", "where", "__and__", "__or__", "__xor__", "floor_divide", "masked_fill", "masked_fill_", "hardswish",
    "hardswish_", "fill_", "copy_", "lerp", "bitwise_and", "rrelu", "threshold", "multiply", "multiply_", "divide",
    "divide_", "subtract", "subtract_", "absolute", "negative", "greater", "greater_equal", "less", "less_equal",
    "not_equal", "isclose", "gelu_", "log_sigmoid", "complex", "polar", "real", "imag", "conj", "_conj", "resolve_conj",
    family=Family.POINTWISE,
)  # fmt: skip
def pointwise(op: Op) -> Any:
    """Aligned at the last dimension and unified; in-place ones too, because axes are symbols.

    ``pointwise`` stands for every operator that PyTorch itself tags so; the others here lack the tag.
    """
    values = op.values()
    if op.name in _PRODUCTS:
        for value in values:
            op.roles(value, Role.SCALES)
    result, held = op.broadcast(values), [v for v in values if v.tensor is not None]
    if len(held) == 1 and sum(v.derived for v in values) == 1 and len(held[0].axes) == len(result.axes):
        return replace(result, tensor=held[0].tensor, dims=held[0].dims or tuple(range(len(result.axes))))  # 1 + gain
    return result


@rule("prelu", family=Family.POINTWISE)
def prelu(op: Op) -> Any:
    """A slope for every channel (dimension 1), or one for all."""
    x, slope = op.value(0), op.value(1)
    op.roles(slope, Role.SCALES)
    op.algebra.unify(x.axes[1], slope.axes[0])
    return x.with_axes(x.axes)


@rule("glu", family=Family.POINTWISE)
def glu(op: Op) -> Any:
    """One half gates the other."""
    x = op.value(0)
    dim = op.arg(1, "dim", -1) % len(x.axes)
    return op.broadcast(op.cut(x, dim, [op.shape[dim]] * 2))


@rule(
    "zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like",
    "empty_like", "scalar_tensor",
    family=Family.CREATION,
)  # fmt: skip
def constant(op: Op) -> Any:
    """The same value everywhere: every axis is wild."""
    return Value(tuple(op.algebra.axis(n, wild=True) for n in op.shape))


@rule("arange", "linspace", "rand", "randn", "eye", "tril_indices", "triu_indices", family=Family.CREATION)
def table(op: Op) -> Any:
    """Values that tell positions apart: pinned."""
    return Value(tuple(op.algebra.axis(n, pin="constant") for n in op.shape))
