"""Operators that sum over an axis of two tensors: written as einsum signatures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otfuse.core.space import Role
from otfuse.flow.algebra.value import Value
from otfuse.flow.rules.op import Op
from otfuse.flow.rules.operators import argument, einsum_letters
from otfuse.flow.rules.origin import origin, sorted_numbers
from otfuse.flow.rules.registry import UNKNOWN, Family, rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otfuse.flow.algebra.axes import Axis


def einsum(op: Op, inputs: Sequence[str], output: str, values: Sequence[Value]) -> Value:
    """Equal letters are the same units; a letter missing from the output is summed over.

    Aligned with a summed letter are the letters that stand beside it in every operand that has it.
    """
    found: dict[str, list[Axis]] = {}
    for letters, value in zip(inputs, values, strict=True):
        for dim, letter in enumerate(letters):
            found.setdefault(letter, []).append(value.axes[dim])
            op.role(value, dim, Role.PRODUCES if letter in output else Role.CONSUMES)
    axes = {letter: op.unify(uses) for letter, uses in found.items()}
    for letter in found:
        if letter not in output:
            holders = [letters for letters in inputs if letter in letters]
            beside = [axes[other] for other in found if other != letter and all(other in held for held in holders)]
            kept = [axes[other] for other in output if any(other in held for held in holders)]
            op.contract(axes[letter], beside, kept)
    return Value(tuple(axes[letter] for letter in output), any(v.derived for v in values))


def _leading(rank: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:rank]


@rule("linear", family=Family.CONTRACTION)
def linear(op: Op) -> Any:
    """``... i, o i, o -> ... o``."""
    x, weight, bias = op.value(0), op.value(1), op.arg(2, "bias")
    lead = _leading(len(x.axes) - 1)
    signature, values = [lead + "i", "oi"], [x, weight]
    if isinstance(bias, Value):
        signature, values = [*signature, "o"], [*values, bias]
    return einsum_added(op, signature, lead + "o", values)


def einsum_added(op: Op, inputs: Sequence[str], output: str, values: Sequence[Value]) -> Value:
    """``einsum`` of the first two operands plus the third, whose letters all stand in the output."""
    result = einsum(op, inputs[:2], output, values[:2])
    for letters, value in zip(inputs[2:], values[2:], strict=True):
        for dim, letter in enumerate(letters):
            op.role(value, dim, Role.PRODUCES)
            op.algebra.unify(result.axes[output.index(letter)], value.axes[dim])
    return result


@rule("addmm", "baddbmm", family=Family.CONTRACTION)
def addmm(op: Op) -> Any:
    """``... o, ... n i, ... i o -> ... n o``; the first operand broadcasts."""
    added, x, weight = op.value(0), op.value(1), op.value(2)
    lead = _leading(len(x.axes) - 2)
    op.roles(added, Role.PRODUCES)
    product = einsum(op, [lead + "ni", lead + "io"], lead + "no", [x, weight])
    return op.broadcast([added, product])


@rule("matmul", "mm", "bmm", "mv", "dot", family=Family.CONTRACTION)
def matmul(op: Op) -> Any:
    """``... n i, ... i o -> ... n o``; vectors on either side; leading dimensions broadcast."""
    x, y = op.value(0), op.value(1)
    if len(y.axes) == 1:
        lead = _leading(len(x.axes) - 1)
        return einsum(op, [lead + "i", "i"], lead, [x, y])
    if len(x.axes) == 1:
        lead = _leading(len(y.axes) - 2)
        return einsum(op, ["i", lead + "io"], lead + "o", [x, y])
    rank = max(len(x.axes), len(y.axes))
    lead = _leading(rank - 2)
    left, right = lead[rank - len(x.axes) :] + "ni", lead[rank - len(y.axes) :] + "io"
    return einsum(op, [left, right], lead + "no", [x, y])


@rule("einsum", family=Family.CONTRACTION)
def einsum_rule(op: Op) -> Any:
    """As written; a letter twice in one operand (a diagonal) is not followed."""
    values = op.arg(1)
    inputs, output = einsum_letters(str(op.arg(0)), [len(v.axes) for v in values])
    if any(len(set(letters)) < len(letters) for letters in inputs):
        return UNKNOWN
    return einsum(op, inputs, output, values)


@rule("_grouped_mm", "transformers::grouped_mm_fallback", family=Family.CONTRACTION)
def grouped_mm(op: Op) -> Any:
    """Rows sorted by group, one matrix per group: ``n i, g i o, g -> n o``; a row's place tells its group."""
    x, weight, offsets = op.value(0), op.value(1), op.value(2, "offs")
    groups = op.algebra.unify(weight.axes[0], offsets.axes[0])
    op.role(weight, 1, Role.CONSUMES)
    op.algebra.unify(x.axes[-1], weight.axes[1])
    op.contract(weight.axes[1], [groups], [weight.axes[2]])
    op.algebra.pin(x.axes[0], "rows of groups", soft=True)
    ends = argument(op.node, 2, "offs")
    numbers = sorted_numbers(ends)  # row by row the groups of the rows
    made = origin(ends) if numbers is None else numbers
    rows = [c.places[0] for c in op.facts.choices if c.origin is made] if numbers is None else op.facts.env[made].axes
    op.choose(made, groups, [op.unify([x.axes[0], *rows])], weight.axes[1:])
    op.algebra.tag(groups, "experts")
    return Value((x.axes[0], weight.axes[2]), derived=True)


@rule("conv1d", "conv2d", "conv3d", family=Family.CONVOLUTION)
def convolution(op: Op) -> Any:
    """Channels are contracted like a matrix; the kernel and the places stay where they are."""
    x, weight, bias, groups = op.value(0), op.value(1), op.arg(2, "bias"), op.arg(6, "groups", 1)
    batch = len(x.axes) - (len(weight.axes) - 1)
    for axis in weight.axes[2:]:
        op.algebra.pin(axis, "kernel")
    for axis in x.axes[batch + 1 :]:
        op.algebra.pin(axis, "spatial")
    out = weight.axes[0]
    op.role(weight, 1, Role.CONSUMES)
    if isinstance(bias, Value):
        op.algebra.unify(out, bias.axes[0])
    channels, aligned = x.axes[batch], list[Any]()
    if groups > 1:
        group, channels = op.algebra.split_axis(channels, groups)
        outer, _ = op.algebra.split_axis(out, groups)
        op.algebra.unify(group, outer)
        aligned = [group]
    op.contract(op.algebra.unify(channels, weight.axes[1]), aligned, [*x.axes[:batch], out])
    for axis in x.axes[batch + 1 :]:
        op.contract(axis, x.axes[:batch], [*x.axes[:batch], out])
    op.algebra.tag(out, "channels")
    places = tuple(op.algebra.axis(n, pin="spatial") for n in op.shape[batch + 1 :])
    return Value((*x.axes[:batch], out, *places), derived=True)


@rule("scaled_dot_product_attention", family=Family.ATTENTION)
def attention(op: Op) -> Any:
    """``... t d, ... s d, ... s e -> ... t e`` with heads shared by all, or key heads shared by groups of query heads."""
    query, key, value, mask = op.value(0), op.value(1), op.value(2), op.arg(3, "attn_mask")
    algebra = op.algebra
    if op.node.kwargs.get("enable_gqa") and algebra.size(query.axes[-3]) != algebra.size(key.axes[-3]):
        groups, _ = algebra.split_axis(query.axes[-3], algebra.size(key.axes[-3]))
        shared = algebra.unify(algebra.unify(groups, key.axes[-3]), value.axes[-3])
        lead = [op.unify(axes) for axes in zip(*(v.axes[:-3] for v in (query, key, value)), strict=True)]
        lead, aligned = [*lead, query.axes[-3]], [*lead, shared]
    else:
        lead = list(op.broadcast([Value(v.axes[:-2]) for v in (query, key, value)]).axes)
        aligned = lead
    inner = algebra.unify(query.axes[-1], key.axes[-1])
    algebra.tag(inner, "query-key")
    asking = query.axes[-2]
    op.contract(inner, aligned, [*lead, asking, key.axes[-2]])
    places = algebra.unify(key.axes[-2], value.axes[-2])
    op.contract(places, aligned, [*lead, asking, value.axes[-1]])
    if op.arg(4, "dropout_p", 0.0):
        for axis in (*lead, asking, places, value.axes[-1]):
            algebra.pin(axis, "random")
    algebra.tag(lead[-1], "heads")
    algebra.tag(value.axes[-1], "value-output")
    if op.arg(5, "is_causal", default=False):
        for axis in (query.axes[-2], places):
            algebra.pin(axis, "causal")
    if isinstance(mask, Value):
        op.broadcast([Value((*lead, query.axes[-2], places)), mask])
    return Value((*lead, query.axes[-2], value.axes[-1]), derived=query.derived or key.derived or value.derived)
