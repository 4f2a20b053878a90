"""Whole heads matched, then the units inside (``query_key: heads``).

Two heads are as far apart as the best matching of their units: of query and key together, because scores read them
together, and of value. Key heads shared by a group of query heads move as one group, its query heads inside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from otfuse.align.maps import UnitMap, require_equal
from otfuse.align.matrix import dense
from otfuse.core.coupling import Coupling
from otfuse.core.graph import NodeKind
from otfuse.core.space import Group
from otfuse.solve.cost import scaled
from otfuse.solve.transport import solve

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from otfuse.align.features import Features
    from otfuse.align.pair import Pair
    from otfuse.core.graph import FlowGraph, FlowNode
    from otfuse.core.options import OTFusion

    class Walk(Protocol):
        """What the walk offers that these maps are part of."""

        pair: Pair
        options: OTFusion
        regulariser: float
        features: Features

        def couple(self, name: str, cost: torch.Tensor) -> Coupling:
            """One transport problem, noted in the report."""

        def note_space(self, space_id: str, coupling: Coupling) -> None:
            """The map of a space that is not what a node writes as a whole: the last problem's."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Units of the projections of one attention: ``query[groups, per group, d]``, ``key[groups, d]``, ``value[groups, e]``."""

    query: NDArray[np.int64]
    key: NDArray[np.int64]
    value: NDArray[np.int64]
    heads: NDArray[np.int64]  # [groups, per group]: the number of every query head


class Heads:
    """Maps of query, key and value projections that respect heads."""

    def __init__(self, walk: Walk) -> None:
        self._walk, self._maps = walk, dict[int, UnitMap]()
        self._of: dict[int, int] = {}
        self._written: dict[int, UnitMap] = {}
        self._outer: dict[str, torch.Tensor] = {}
        pair = walk.pair
        for node in pair.anchor.graph.nodes:
            if node.kind is not NodeKind.ATTENTION:
                continue
            made = [pair.producer(r.node) for r in node.readings if r.role in ("query", "key", "value")]
            if len(set(made)) == 3 and all(pair.anchor.graph.nodes[i].kind is NodeKind.LINEAR for i in made):
                self._of |= dict.fromkeys(made, node.index)

    def covers(self, index: int) -> bool:
        """Whether the layer projects to query, key or value."""
        return index in self._of

    def map_of(self, index: int) -> UnitMap:
        """The layer's map; those of its whole attention are found at once."""
        if index not in self._maps:
            self._solve(self._of[index])
        return self._maps.pop(index)

    def written(self, attention: int) -> UnitMap | None:
        """The map of what an attention writes, query head by query head; None if it is not covered."""
        if attention in self._of.values() and attention not in self._written:
            self._solve(attention)
        return self._written.pop(attention, None)

    def _solve(self, attention: int) -> None:
        walk, pair = self._walk, self._walk.pair
        node, other = pair.nodes(attention)
        made = {r.role: pair.producer(r.node) for r in node.readings if r.role in ("query", "key", "value")}
        ours, theirs = layout(pair.anchor.graph, node), layout(pair.source.graph, other)
        costs = {
            role: scaled(walk.features.cost((i,), [walk.features.all_units(i)]), walk.options.cost_scale)
            for role, i in made.items()
        }
        walk.features.forget(tuple(made.values()))
        inner = _Inner(walk, costs, ours, theirs, parts=self._parts(made["key"], ours.key[0]), name=node.name)
        shared = next((s for s in node.written_spaces if pair.anchor.graph.space(s).kind == "heads"), node.name)
        if shared not in self._outer:  # heads that several attentions share (one position bias) move together
            self._outer[shared] = walk.couple(f"{node.name} heads", inner.distances()).mass
            walk.note_space(shared, Coupling(self._outer[shared], 0.0))
        masses = inner.masses(self._outer[shared])
        for role, i in made.items():
            coupling = Coupling(masses[role], float((masses[role] * costs[role]).sum()))
            self._maps[i] = UnitMap.of(coupling, walk.options.unequal)
        self._written[attention] = UnitMap.of(Coupling(inner.written(masses), 0.0), walk.options.unequal)

    def _parts(self, key: int, units: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], bool]]:
        """Which units inside a head may change places with each other, and whether they must keep their order.

        Rotary pairs and what shares one gain with other heads keep it; with partly rotary heads the others do not.
        """
        graph = self._walk.pair.anchor.graph
        node = graph.nodes[key]
        places = {p.tensor: p.writes[1][units] for p in node.pieces if p.writes is not None}
        labels, fixed = [""] * len(units), np.zeros(len(units), bool)
        for space in (graph.space(s) for s in node.written_spaces):
            keeps = space.group in (Group.PINNED, Group.ROTARY)
            for member in (m for m in space.members if m.tensor in places):
                if keeps or member.positions.shape[2] == 1:
                    found = np.isin(places[member.tensor], member.positions)
                    labels = [f"{label} {space.id}" if hit else label for label, hit in zip(labels, found, strict=True)]
                    fixed |= found & keeps
        return [
            (np.flatnonzero([own == label for own in labels]), bool(fixed[labels.index(label)]))
            for label in dict.fromkeys(labels)
        ]


class _Inner:
    """Matchings inside every pair of heads (or groups) of one attention."""

    def __init__(  # one record of what a pair of heads needs
        self,
        walk: Walk,
        costs: dict[str, torch.Tensor],
        ours: Layout,
        theirs: Layout,
        *,
        parts: list[tuple[NDArray[np.int64], bool]],
        name: str,
    ) -> None:
        self._walk, self._costs, self._ours, self._theirs = walk, costs, ours, theirs
        self._parts, self._name = parts, name
        groups = len(ours.key), len(theirs.key)
        self._between: dict[tuple[int, int], torch.Tensor] = {}
        self._pairs = {(g, h): self._match(g, h) for g in range(groups[0]) for h in range(groups[1])}
        self._groups = groups

    def distances(self) -> torch.Tensor:
        """``[groups, groups']``: the cost of the best matching inside each pair."""
        table = torch.zeros(self._groups, dtype=torch.float64)
        for (g, h), (_, _, distance) in self._pairs.items():
            table[g, h] = distance
        return table

    def masses(self, outer: torch.Tensor) -> dict[str, torch.Tensor]:
        """Couplings of all units of query, key and value, from the coupling of the heads."""
        masses = {role: torch.zeros_like(cost) for role, cost in self._costs.items()}
        for (g, h), (scores, values, _) in self._pairs.items():
            weight = outer[g, h]
            if weight <= 0:
                continue
            _put(masses["key"], self._ours.key[g], self._theirs.key[h], weight * scores)
            _put(masses["value"], self._ours.value[g], self._theirs.value[h], weight * values)
            queries = self._between[g, h] = self._queries(g, h, scores)
            for r, row in enumerate(self._ours.query[g]):
                for s, column in enumerate(self._theirs.query[h]):
                    _put(masses["query"], row, column, weight * queries[r, s] * scores)
        return masses

    def written(self, masses: dict[str, torch.Tensor]) -> torch.Tensor:
        """Coupling of what the attention writes, ``(head, unit)`` row-major over the heads of the queries."""
        ours, theirs = self._ours, self._theirs
        width = ours.value.shape[1], theirs.value.shape[1]
        total = torch.zeros(ours.heads.size * width[0], theirs.heads.size * width[1], dtype=torch.float64)
        for (g, h), queries in self._between.items():
            values = _sub(masses["value"], ours.value[g], theirs.value[h])
            for r, row in enumerate(ours.heads[g]):
                for s, column in enumerate(theirs.heads[h]):
                    rows = row * width[0] + np.arange(width[0])
                    columns = column * width[1] + np.arange(width[1])
                    _put(total, rows, columns, queries[r, s] * values)
        return total

    def _match(self, g: int, h: int) -> tuple[torch.Tensor, torch.Tensor, float]:
        ours, theirs = self._ours, self._theirs
        cost = _sub(self._costs["key"], ours.key[g], theirs.key[h])
        queries = [_sub(self._costs["query"], r, s) for r in ours.query[g] for s in theirs.query[h]]
        cost = cost + torch.stack(queries).mean(0)
        scores = self._in_parts(cost)
        values = self._couple(_sub(self._costs["value"], ours.value[g], theirs.value[h]))
        return scores.mass, values.mass, scores.objective + values.objective

    def _queries(self, g: int, h: int, scores: torch.Tensor) -> torch.Tensor:
        table = [
            [(scores * _sub(self._costs["query"], r, s)).sum() for s in self._theirs.query[h]]
            for r in self._ours.query[g]
        ]
        return self._couple(torch.stack([torch.stack(line) for line in table])).mass

    def _in_parts(self, cost: torch.Tensor) -> Coupling:
        if len(self._parts) == 1 and not self._parts[0][1]:
            return self._couple(cost)
        require_equal(cost.shape[0], cost.shape[1], f"{self._name}: units inside heads")
        mass = torch.zeros_like(cost)
        for units, fixed in self._parts:
            part = torch.eye(len(units), dtype=cost.dtype) / len(units)
            if not fixed:
                part = self._couple(_sub(cost, units, units)).mass
            _put(mass, units, units, part * (len(units) / len(cost)))
        return Coupling(mass, float((mass * cost).sum()))

    def _couple(self, cost: torch.Tensor) -> Coupling:
        return solve(cost, solver=self._walk.options.solver, regulariser=self._walk.regulariser)


def query_heads(queries: UnitMap, ours: FlowNode, theirs: FlowNode) -> UnitMap | None:
    """How query heads that share a value correspond, place by place of what their attention writes; None if none do.

    Two heads correspond as much as their query units do, among the heads of the two groups (the value's map says how
    much the groups do); heads of groups whose queries have nothing in common correspond in order.
    """
    nodes = ours, theirs
    values = [next(r.units[:, 0] for r in node.readings if r.role == "value") for node in nodes]
    groups = [
        np.unique(v.reshape(n.heads, -1)[:, 0], return_inverse=True)[1] for n, v in zip(nodes, values, strict=True)
    ]
    if all(len(np.unique(group)) == node.heads for node, group in zip(nodes, groups, strict=True)):
        return None
    alike = dense(queries.coarse(ours.heads, theirs.heads).writes)
    writes, reads = torch.zeros_like(alike), torch.zeros_like(alike)
    for g in np.unique(groups[0]):
        for h in np.unique(groups[1]):
            rows, columns = (
                torch.from_numpy(np.flatnonzero(group == i)) for group, i in zip(groups, (g, h), strict=True)
            )
            part, order = alike[rows][:, columns], UnitMap.identity(len(rows), len(columns))
            for table, dim, default in ((writes, 1, dense(order.writes)), (reads, 0, dense(order.reads))):
                total = part.sum(dim, keepdim=True)
                table[rows[:, None], columns] = torch.where(total > 0, part / total.clamp_min(1e-300), default)
    rows, columns = (torch.arange(len(v)) // (len(v) // n.heads) for n, v in zip(nodes, values, strict=True))
    return UnitMap(writes[rows][:, columns], reads[rows][:, columns])


def layout(graph: FlowGraph, node: FlowNode) -> Layout:
    """Which units of the projections belong to which head of an attention."""
    units = {r.role: _down(graph, r.node, r.units[:, 0]) for r in node.readings if r.role in ("query", "key", "value")}
    query = units["query"].reshape(node.heads, -1)
    value = units["value"].reshape(node.heads, -1)
    _, first, group = np.unique(value[:, 0], return_index=True, return_inverse=True)
    key = units["key"].reshape(-1, query.shape[1])
    key = key[first] if len(key) == node.heads else key
    per_group = np.stack([query[group == g] for g in range(len(first))])
    heads = np.stack([np.flatnonzero(group == g) for g in range(len(first))])
    return Layout(per_group, key, value[first], heads)


def _down(graph: FlowGraph, index: int, units: NDArray[np.int64]) -> NDArray[np.int64]:
    """Unit numbers of a node in terms of the layer that made them."""
    node = graph.nodes[index]
    while node.kind in (NodeKind.NORM, NodeKind.SCALE, NodeKind.ACTIVATION) and node.readings:
        units = node.readings[0].units[units, 0]
        node = graph.nodes[node.readings[0].node]
    return units


def _sub(cost: torch.Tensor, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> torch.Tensor:
    return cost[torch.from_numpy(rows)][:, torch.from_numpy(columns)]


def _put(mass: torch.Tensor, rows: NDArray[np.int64], columns: NDArray[np.int64], block: torch.Tensor) -> None:
    mass[torch.from_numpy(rows)[:, None], torch.from_numpy(columns)[None, :]] += block
