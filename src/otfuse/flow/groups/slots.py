"""Where a space acts on the stored tensors: by which side of an attention they make, and which factor of a product."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from otfuse.core.graph import NodeKind
from otfuse.core.space import Group, Role
from otfuse.core.symmetry import Slot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otfuse.core.graph import FlowGraph, FlowNode
    from otfuse.core.space import Member, Space

Place: TypeAlias = "tuple[str, int, int]"  # tensor, axis, position along it

_KEEPING = (NodeKind.NORM, NodeKind.SCALE)


def slots(space: Space, keys: set[Place]) -> tuple[Slot, ...]:
    """Every place where a space acts, one for every place along a unit's width; ``keys`` as :func:`key_places` finds them.

    A rotary space of ``copies`` x ``size`` pairs has that many copies here, each of two: real and imaginary part.
    """
    return tuple(slot for member in space.members for slot in _of_member(space, member, keys))


def _of_member(space: Space, member: Member, keys: set[Place]) -> Iterator[Slot]:
    found = member.positions
    if space.group is Group.ROTARY:
        found = found.reshape(space.copies * space.size, -1, 2).swapaxes(1, 2)
    for at in np.ascontiguousarray(np.moveaxis(found, 2, 0)):
        key = space.kind == "query-key" and (member.tensor, member.axis, int(at[0, 0])) in keys
        inverse, gain = member.role is Role.CONSUMES or key, member.role is Role.SCALES
        yield Slot(member.tensor, member.axis, at, inverse, gain, member.batch_axis)


def key_places(graph: FlowGraph) -> set[Place]:
    """Everything in a query-key space that makes a key: there a map acts by its inverse, for queries meet keys.

    Where the graph lost sight of what makes the keys (parts of several layers joined), it is what shares a space with the queries.
    """
    attentions = [node for node in graph.nodes if node.kind is NodeKind.ATTENTION]
    queries, keys = (
        {place for node in attentions for place in _makers(graph, node, role)} for role in ("query", "key")
    )
    found = set[Place]()
    for space in graph.spaces:
        if space.kind == "query-key":
            own = {(m.tensor, m.axis, int(i)) for m in space.members for i in m.positions.reshape(-1)}
            found |= own & keys or (own - queries if own & queries else set())
    return found


def _makers(graph: FlowGraph, attention: FlowNode, role: str) -> set[Place]:
    """Where the layers write that the queries, or the keys, of an attention are read from."""
    found = set[Place]()
    for reading in attention.readings:
        if reading.role != role:
            continue
        made, used = graph.nodes[reading.node], np.unique(reading.units[reading.units >= 0])
        while made.kind in _KEEPING and made.readings:
            made = graph.nodes[made.readings[0].node]
        found |= _written(made, used)
        for index in _behind(graph, made):  # which of its units come from where is not known
            found |= _written(graph.nodes[index])
    return found


def _behind(graph: FlowGraph, made: FlowNode) -> set[int]:
    """What an opaque node reads, through others that are opaque or keep their units."""
    found, open_nodes = set[int](), [made] if made.kind is NodeKind.OPAQUE else []
    while open_nodes:
        for reading in open_nodes.pop().readings:
            if reading.node not in found:
                found.add(reading.node)
                node = graph.nodes[reading.node]
                open_nodes += [node] if node.kind in (NodeKind.OPAQUE, *_KEEPING) else []
    return found


def _written(node: FlowNode, units: np.ndarray | None = None) -> set[Place]:
    found = set[Place]()
    for piece in node.pieces:
        if piece.writes is not None:
            axis, places = piece.writes
            chosen = places if units is None else places[units[units < len(places)]]
            found |= {(piece.tensor, axis, int(i)) for i in chosen}
    return found


def factors(graph: FlowGraph, found: tuple[Slot, ...]) -> list[frozenset[int]]:
    """What may be a factor of a product: numbers of the slots that write it, for every layer that makes units of a space.

    Where no layer of the graph holds a tensor (experts in one tensor), every place along the width is one.
    """
    makers = [i for i, slot in enumerate(found) if not slot.inverse and not slot.order_only]
    layers = [_written(node) for node in graph.nodes if node.kind is NodeKind.LINEAR]
    groups: dict[object, set[int]] = {}
    for i in makers:
        slot = found[i]
        place = slot.tensor, slot.axis, int(slot.positions[0, 0])
        holders = [n for n, places in enumerate(layers) if place in places]
        groups.setdefault(tuple(holders) or place, set()).add(i)
    return [frozenset(group) for group in groups.values()] if 1 < len(groups) <= _FACTORS else []


_FACTORS = 4  # a stream has many writers, and none of them is a factor
