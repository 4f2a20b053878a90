"""Abstract interpretation: the program walked once, every operator by its rule, every value by its axes."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch

from otfuse.errors import RuleError
from otfuse.flow.algebra.axes import MisfitError
from otfuse.flow.algebra.value import Stacked, Value, values_in
from otfuse.flow.rules.facts import Facts
from otfuse.flow.rules.op import Op
from otfuse.flow.rules.operators import operator_name
from otfuse.flow.rules.registry import UNKNOWN, entry_of
from otfuse.flow.rules.stack import on_stack
from otfuse.program.whereabouts import where

if TYPE_CHECKING:
    from torch import fx

    from otfuse.program.export import Program


def interpret(program: Program) -> Facts:
    """Everything the rules can say about the program. Only live nodes are walked: dead code must not constrain."""
    facts, live = Facts(), program.live()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            _placeholder(facts, program, node, is_live=node in live)
        elif node.op == "call_function" and node in live:
            facts.env[node] = _step(facts, node)
            facts.records.extend(values_in(facts.env[node]))
    for node in program.outputs:
        for value in values_in(facts.env[node]):
            for axis in (*value.axes, value.points or ()):  # a number that comes out tells where it points
                facts.algebra.pin(axis, "output")
    facts.records.extend(facts.stored.values())
    return facts


def _placeholder(facts: Facts, program: Program, node: fx.Node, *, is_live: bool) -> None:
    held: Any = node.meta.get("val")
    if node.name in program.parameters:
        name = program.parameters[node.name]
        if name not in facts.stored:  # tied weights are one member
            axes = tuple(facts.algebra.axis(int(n)) for n in held.shape)
            facts.stored[name] = Value(axes, True, None, name, tuple(range(len(axes))), stored=True)
        facts.env[node] = facts.stored[name]
        if is_live:
            facts.live.add(name)
    elif isinstance(held, torch.Tensor):
        reason = "input" if node.name in program.users else "constant"
        facts.env[node] = Value(tuple(facts.algebra.axis(int(n), pin=reason) for n in held.shape))
    else:
        facts.env[node] = None


def _step(facts: Facts, node: fx.Node) -> Any:
    if node.target is operator.getitem:
        return facts.env[node.args[0]][node.args[1]]  # type: ignore[index]
    if operator_name(node).startswith("_assert"):
        return None
    op, entry = Op(node, facts.env, facts), entry_of(node)
    if entry is None:
        return _fallback(facts, node, op)
    try:
        if isinstance(op.raw(0), Stacked):
            result = on_stack(op)
            if result is not UNKNOWN:
                return result
        result = entry.apply(op)
    except (MisfitError, TypeError, IndexError, ValueError):  # a form of the operator that its rule does not cover
        result = UNKNOWN
    if result is UNKNOWN or (isinstance(result, Value) and isinstance(node.meta.get("val"), (list, tuple))):
        return _fallback(facts, node, op)
    _check(facts, op, result)
    return result


def _fallback(facts: Facts, node: fx.Node, op: Op) -> Any:
    """No rule: everything the operator reads is pinned (softly: it is ignorance), its result is opaque."""
    derived = False
    for argument in node.all_input_nodes:
        for value in values_in(facts.env.get(argument)):
            derived = derived or value.derived
            for axis in value.axes:
                facts.algebra.pin(axis, f"no rule for {operator_name(node)}", soft=True)
    if derived:
        facts.unknown.append(node)
    held = node.meta.get("val")
    results = [  # what is no tensor keeps its place among them
        op.opaque([int(n) for n in item.shape], derived=derived) if isinstance(item, torch.Tensor) else None
        for item in (held if isinstance(held, (list, tuple)) else [held])
    ]
    return results if isinstance(held, (list, tuple)) else results[0]


def _check(facts: Facts, op: Op, result: Any) -> None:
    """A rule's axes must have the sizes of the real result: this finds wrong rules before they can do harm."""
    for value, shape in zip(values_in(result), op.shapes, strict=False):
        if isinstance(result, Stacked):
            return
        found = tuple(facts.algebra.size(axis) for axis in value.axes)
        if found != shape:
            raise RuleError(
                f"the flow rule for {op.node.target} gives axes of {list(found)} where the program has {list(shape)}, at "
                f"{where(op.node)}; mend the rule (docs/rules.md)"
            )
