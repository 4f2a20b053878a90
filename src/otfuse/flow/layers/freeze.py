"""Frozen flow nodes: parts with their spaces, their readings and the place where their units can be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from otfuse.core.graph import FlowNode, NodeKind, Observation
from otfuse.flow.algebra.value import values_in
from otfuse.flow.layers.grid import token_axis
from otfuse.flow.layers.split import Part, rerouted, take_apart
from otfuse.flow.layers.walk import walk
from otfuse.program.whereabouts import where

if TYPE_CHECKING:
    from otfuse.core.space import Space
    from otfuse.flow.follow.reach import Reach
    from otfuse.flow.rules.facts import Facts
    from otfuse.program.export import Program


def flow_nodes(program: Program, facts: Facts, spaces: dict[int, list[Space]], reach: Reach) -> tuple[FlowNode, ...]:
    """All layer-level nodes in the order of the forward pass; ``spaces`` are those of every leaf."""
    parts, went = take_apart(walk(program, facts).found)
    nodes = list[FlowNode]()
    for index, part in enumerate(parts):
        found = part.found
        readings = tuple(new for r in found.readings for new in rerouted(r, went))
        read = tuple(dict.fromkeys(s for r in readings for s in nodes[r.node].written_spaces)) if readings else ()
        nodes.append(
            FlowNode(
                index=index,
                name=found.name,
                kind=found.kind,
                size=len(part.units),
                readings=readings,
                pieces=part.pieces(),
                observation=_observation(facts, reach, part),
                read_spaces=read,
                written_spaces=_written(facts, spaces, part),
                heads=found.heads,
                where=where(found.at),
            )
        )
    return tuple(nodes)


def _written(facts: Facts, spaces: dict[int, list[Space]], part: Part) -> tuple[str, ...]:
    """Spaces of the leaves along the dimensions that hold the units; of a part only those that its tensors hold."""
    if part.found.kind is NodeKind.OUTPUT or part.unread:
        return ()
    value = next(values_in(facts.env[part.found.at]), None)
    if value is None:
        return ()
    leaves = dict.fromkeys(leaf for d in part.found.dims for leaf in facts.algebra.leaves(value.axes[d]))
    held = {(p.tensor, p.writes[0]): set(p.writes[1].tolist()) for p in part.pieces() if p.writes is not None}
    names = []
    for leaf in leaves:
        for space in spaces.get(facts.algebra.find(leaf), ()):
            own = [m for m in space.members if (m.tensor, m.axis) in held]
            whole = len(part.units) == part.found.size and len(spaces[facts.algebra.find(leaf)]) == 1
            if whole or any(held[m.tensor, m.axis] & set(m.positions.reshape(-1).tolist()) for m in own):
                names.append(space.id)
    return tuple(names)


def _observation(facts: Facts, reach: Reach, part: Part) -> Observation | None:
    found = part.found
    value = next(values_in(facts.env[found.at]), None)
    if (
        value is None
        or found.kind is NodeKind.OUTPUT
        or not found.dims
        or found.stored
        or part.unread
        or 0 in found.dims
    ):
        return None
    return Observation(
        value=found.at.name,
        dims=found.dims,
        units=np.asarray(part.units, np.int64),
        tokens=token_axis(facts.algebra, value.axes, found.dims),
        read=reach.read(found.at, found.dims, np.asarray(part.units, np.int64)),
    )
