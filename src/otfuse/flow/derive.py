"""Program -> flow graph."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from otfuse.core.graph import FlowGraph, NodeKind, unreached
from otfuse.core.space import Group
from otfuse.errors import RuleError
from otfuse.flow.freeze import flow_nodes
from otfuse.flow.interpret import interpret
from otfuse.flow.reach import Reach
from otfuse.flow.registry import entry_of, operator_name
from otfuse.flow.spaces import Draft, SpaceBuilder
from otfuse.program.inputs import examples
from otfuse.program.run import Questions
from otfuse.program.whereabouts import where

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otfuse.core.graph import FlowNode
    from otfuse.core.space import Space
    from otfuse.flow.facts import Facts
    from otfuse.program.export import Program

_TOO_MUCH = 0.1  # a space pinned out of ignorance may not hold more of the parameters than this


def derive(program: Program, *, holds: Callable[[Space], bool | None] = lambda _: None) -> FlowGraph:
    """The flow graph of a program.

    ``holds`` tries a space that is pinned only because a rule is missing or says nothing about order, or that looks like
    rotary pairs: it returns whether moving its units leaves the program's outputs unchanged (float64), None if it cannot
    tell. Then the former stay pinned; the latter are turned only if one operator for all of attention says so.
    Raises RuleError if an operator without a rule pins a space with more than a tenth of the parameters.
    """
    facts, reach = interpret(program), Reach(program)
    drafts = [_promoted(draft, holds) if draft.soft else draft for draft in SpaceBuilder(facts, reach, holds).build()]
    _refuse_ignorance(program, facts, drafts)
    by_leaf: dict[int, list[Space]] = {}
    for draft in drafts:
        by_leaf.setdefault(draft.leaf, []).append(draft.space)
    nodes = flow_nodes(program, facts, by_leaf, reach)
    uses = _uses(nodes)
    graph = FlowGraph(
        spaces=tuple(_as_stream(_as_used(draft.space, uses), nodes) for draft in drafts),
        nodes=nodes,
        shapes=program.shapes,
        ties=program.ties,
        unread=tuple(name for name, first in program.ties.items() if first not in facts.live),
        notes=tuple(_notes(program, facts)),
    )
    lost = unreached(graph)
    note = f"on these inputs no prediction depends on {', '.join(lost)}"
    return replace(graph, notes=(*graph.notes, note)) if lost else graph


def _notes(program: Program, facts: Facts) -> Iterator[str]:
    yield from (f"no rule for {name} ({count} x)" for name, count in facts.unknown_names().items())
    if program.asked:
        asked = ", ".join(Questions(program).inputs())
        yield f"what is computed depends on values of {asked}: the graph holds for inputs that are alike in these"
    if examples(program.inputs) == 1:
        yield "traced on one example, because several are not taken: what mixes examples with units would not be seen"


def _uses(nodes: tuple[FlowNode, ...]) -> dict[str, str]:
    """What attention does with a space that its query, key or value carry, also where it is written out."""
    uses: dict[str, str] = {}
    for node in nodes:
        if node.kind is not NodeKind.ATTENTION:
            continue
        query, key, value = (
            {s for r in node.readings if r.role == role for s in nodes[r.node].written_spaces}
            for role in ("query", "key", "value")
        )
        heads = key & value if node.heads > 1 else set[str]()
        uses |= dict.fromkeys(heads, "heads") | dict.fromkeys((query & key) - value, "query-key")
        uses |= dict.fromkeys(value - key, "value-output") | dict.fromkeys(query - key, "queries")
    return uses


def _as_used(space: Space, uses: dict[str, str]) -> Space:
    kind = uses.get(space.id, space.kind) if space.kind == "units" and space.pinned is None else space.kind
    return replace(space, kind=kind, name=space.name.removesuffix(space.kind) + kind)


def _as_stream(space: Space, nodes: tuple[FlowNode, ...]) -> Space:
    """A space that a junction writes is a stream, named after the module that holds all of its members."""
    if not any(node.kind is NodeKind.JUNCTION and space.id in node.written_spaces for node in nodes):
        return space
    paths = [m.tensor.split(".") for m in space.members]
    common = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
    return replace(space, kind="stream", name=" ".join([".".join(common), "stream"]).strip())


def _promoted(draft: Draft, holds: Callable[[Space], bool | None]) -> Draft:
    free = replace(draft.space, group=Group.PERMUTATION, pinned=None)
    return Draft(draft.leaf, free, soft=False) if holds(free) else draft


def _refuse_ignorance(program: Program, facts: Facts, drafts: list[Draft]) -> None:
    total = sum(prod(value) for name, value in program.shapes.items() if program.ties[name] == name)
    for draft in drafts:
        if not draft.soft or not facts.unknown:
            continue
        held = {member.tensor for member in draft.space.members}
        share = sum(prod(program.shapes[name]) for name in held) / max(total, 1)
        reasons = facts.algebra.cell(draft.leaf).soft
        node = next((n for n in facts.unknown if f"no rule for {operator_name(n)}" in reasons), None)
        if share > _TOO_MUCH and node is not None:
            place = f"called at {where(node)}: it would pin {draft.space.name} ({draft.space.size} units, "
            place += f"{share:.0%} of the parameters)"
            if entry_of(node) is not None:
                raise RuleError(
                    f"the flow rule for {node.target} does not follow it as it is {place}; write that step with other "
                    "operators, or extend the rule (docs/rules.md)"
                )
            raise RuleError(
                f"no flow rule for {node.target}, {place}; declare a rule with "
                f"@otfuse.flow.registry.rule({operator_name(node)!r}, family=...) (docs/rules.md)"
            )
