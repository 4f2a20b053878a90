"""Program -> flow graph: the story, one line for every room of this folder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from otfuse.core.graph import FlowGraph, unreached
from otfuse.flow.follow.reach import Reach
from otfuse.flow.layers.freeze import flow_nodes
from otfuse.flow.rules.interpret import interpret
from otfuse.flow.spaces.build import Holds, SpaceBuilder
from otfuse.flow.spaces.ignorance import refuse_ignorance
from otfuse.flow.spaces.uses import as_stream, as_used, streams_of, uses_of
from otfuse.program.inputs import examples
from otfuse.program.run import Questions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otfuse.core.space import Space
    from otfuse.flow.rules.facts import Facts
    from otfuse.program.export import Program


def derive(program: Program, *, holds: Holds = lambda trials: [None] * len(trials)) -> FlowGraph:
    """The flow graph of a program.

    ``holds`` tries spaces that are pinned only because a rule is missing or says nothing about order, each alone, and
    those that look like rotary pairs, all that one table of angles turns together: it returns for each trial whether
    moving any of its spaces leaves the program's outputs unchanged (float64), None if it cannot tell. Then the former
    stay pinned; the latter are turned only if one operator for all of attention says so.
    Raises RuleError if an operator without a rule pins a space with more than a tenth of the parameters.
    """
    facts = interpret(program)  # what every operator says about the units of its tensors
    reach = Reach(program)  # which places of which value a prediction reads

    # sets of interchangeable units, and all places where they are stored
    drafts = SpaceBuilder(facts, reach, holds).build()
    refuse_ignorance(program, facts, drafts)

    # the steps a person would name, and which spaces they read and write
    by_leaf: dict[int, list[Space]] = {}
    for draft in drafts:
        by_leaf.setdefault(draft.leaf, []).append(draft.space)
    nodes = flow_nodes(program, facts, by_leaf, reach)

    uses = uses_of(nodes)
    streams = streams_of(nodes)
    graph = FlowGraph(
        spaces=tuple(as_stream(as_used(draft.space, uses), streams) for draft in drafts),
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
