"""Scheme ``otfusion``: the published method (arXiv 2310.05719) as a walk over the flow graph.

Every node's map goes from the source's units to the anchor's. Layers get a map of their own from an optimal transport
problem; what keeps units passes the map on; a junction mixes the maps of its skip and its branches by the residual
policy; query and key end in their attention, which passes the map of the value. So the map of the stream changes at
every junction, as published (docs/method.md, 6); the scheme ``aligned`` has one map per space instead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from otfuse.align.attention import Heads, query_heads
from otfuse.align.carry import Carrier, Claims
from otfuse.align.features import Features
from otfuse.align.maps import UnitMap, block, mixed, require_equal
from otfuse.align.matrix import dense
from otfuse.align.residual import junction_weights
from otfuse.align.structure import KEEPING, kept_units, last_uses, magnitude_key, mute_tables, shared_maps
from otfuse.core.alignment import Alignment, SpaceReport
from otfuse.core.graph import NodeKind
from otfuse.solve.transport import solve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otfuse.align.pair import Pair
    from otfuse.core.alignment import Carry
    from otfuse.core.coupling import Coupling
    from otfuse.core.graph import FlowNode
    from otfuse.core.options import OTFusion
    from otfuse.measure.moments import Moments


class OTFusionWalk:
    """One walk: node by node its map, then the carries of the stored tensors that are complete with it.

    A map lives until the last node that reads it is done, moments until they are compared (unless this is not the
    ``last`` walk that needs them). ``keep`` holds the maps of all spaces for the result; tensors ``aside`` stay the anchor's.
    """

    def __init__(
        self,
        pair: Pair,
        options: OTFusion,
        regulariser: float,
        moments: dict[int, Moments] | None = None,
        magnitudes: Mapping[int, torch.Tensor] | None = None,
        *,
        aside: frozenset[str] = frozenset(),
        keep: bool = False,
        last: bool = True,
    ) -> None:
        self.pair, self.options, self.regulariser = pair, options, regulariser
        self._magnitudes, self._keep = magnitudes or {}, keep
        self.features = Features(pair, options, moments, self.incoming, last=last)
        self._maps: dict[int, UnitMap | None] = {}
        self._latest: dict[str, UnitMap] = {}
        self._solved: list[SpaceReport] = []
        self._together = shared_maps(pair, tied=options.query_key == "tied")
        self._kept = kept_units(pair) if options.classifier == "anchor" else frozenset[int]()
        self._heads = Heads(self) if options.query_key == "heads" else None
        self.kept = aside
        self._mute = mute_tables(pair) if options.unread == "skip" else {}
        self._claims = Claims(pair.anchor.graph, self.kept)
        self._carrier = Carrier(pair, self._claims, self.map_of, self.incoming)
        self._blank: set[int] = set()  # nodes whose units are not followed
        self._asked = self._asked_spaces()
        self._dies = last_uses(pair.anchor.graph, self._together)

    @property
    def steps(self) -> int:
        """How many nodes there are to go through, in order."""
        return len(self.pair.anchor.graph.nodes)

    def step(self, index: int) -> dict[str, tuple[Carry, ...]]:
        """The tensors that are complete with the node ``index``, with their carries."""
        if self.map_of(index) is None:
            self._blank.add(index)
        complete = self._carrier.at(index)
        for done in self._dies.get(index, ()):
            self._maps.pop(done)
        return complete

    def rest(self) -> dict[str, tuple[Carry, ...]]:
        """The tensors that no layer of the flow uses though predictions read them, when all nodes are done."""
        return {name: self._carrier.by_spaces(name, self._latest) for name in self._claims.unclaimed}

    def alignment(self) -> Alignment:
        """What was found, when all is done."""
        maps = {name: dense(found.writes).float() for name, found in self._latest.items()} if self._keep else {}
        return Alignment(maps, tuple(self._solved), (*self._lost(), *self._carrier.notes), self.kept)

    def _asked_spaces(self) -> frozenset[str]:
        """Spaces of which the last map found is asked for later: for tensors and steps that no rule follows."""
        graph = self.pair.anchor.graph
        if self._keep:
            return frozenset(space.id for space in graph.free)
        held = {s.id for s in graph.spaces for m in s.members if m.tensor in self._claims.unclaimed}
        return frozenset(held.union(*(n.written_spaces for n in graph.nodes if n.kind is NodeKind.OPAQUE)))

    def _lost(self) -> list[str]:
        """Steps whose units are not followed, as notes: what reads them takes them as they come."""
        nodes = self.pair.anchor.graph.nodes
        read = {r.node for node in nodes for r in node.readings}
        lost = [n for n in nodes if self._is_blank(n) and n.index in read and n.index in self._blank]
        blind = [n for n in nodes if n.kind is NodeKind.LINEAR and not n.readings and n.pieces]
        found = [f"{n.name or 'the model'}, {n.where}: what comes out of this step is not followed" for n in lost] + [
            f"{n.name or 'the model'}, {n.where}: what it reads is not followed, and taken in the source's own order"
            for n in blind
        ]
        return list(dict.fromkeys(found))

    def _is_blank(self, node: FlowNode) -> bool:
        """Whether nothing tells units of this node apart: no rule followed it, or what is stored along two axes at once."""
        stored = node.kind is NodeKind.SOURCE and not node.pieces and not self.pair.observed(node.index)
        return node.kind is NodeKind.OPAQUE or stored

    # -- maps --------------------------------------------------------------------------------------------------------
    def map_of(self, index: int) -> UnitMap | None:
        """The map of what a node writes; None where its units are not followed."""
        if index not in self._maps:
            node, other = self.pair.nodes(index)
            found = self._find(node, other)
            self._maps[index] = found
            if found is not None and len(node.written_spaces) == 1 and node.written_spaces[0] in self._asked:
                self._latest[node.written_spaces[0]] = found
        return self._maps[index]

    def incoming(self, index: int) -> UnitMap | None:
        """The map of what a node reads, place by place; None if it reads no units."""
        node, other = self.pair.nodes(index)
        if not node.readings:
            return None
        return self._read(node, other, 0)

    def _read(self, node: FlowNode, other: FlowNode, which: int, arrivals: UnitMap | None = None) -> UnitMap:
        ours, theirs = node.readings[which], other.readings[which]
        found = self.map_of(ours.node)
        if found is None:
            return UnitMap.identity(len(ours.units), len(theirs.units))
        return found.pulled(ours.units, theirs.units, arrivals)

    def _find(self, node: FlowNode, other: FlowNode) -> UnitMap | None:
        if node.kind is NodeKind.OUTPUT:
            return None
        if node.index in self._kept or (
            node.kind in (NodeKind.LINEAR, NodeKind.SOURCE) and self.pair.fixed(node.index)
        ):
            if not node.pieces or not {piece.tensor for piece in node.pieces} <= self.kept:
                require_equal(node.size, other.size, node.name)
            return UnitMap.identity(node.size, other.size)
        if node.index in self._mute:
            return self.map_of(self._mute[node.index])
        if node.kind in (NodeKind.LINEAR, NodeKind.SOURCE) and not self._is_blank(node):
            return self._solve_layer(node.index)
        if node.kind in KEEPING or node.kind is NodeKind.PRODUCT:
            return self._read(node, other, 0)
        if node.kind is NodeKind.CONCAT:
            return block([self._read(node, other, i) for i in range(len(node.readings))])
        if node.kind is NodeKind.ATTENTION:
            written = self._heads.written(node.index) if self._heads is not None else None
            return written if written is not None else self._attention(node, other)
        if node.kind is NodeKind.JUNCTION:
            return self._junction(node, other)
        known = [self._latest[s] for s in node.written_spaces if s in self._latest]  # opaque: what the stream has
        return known[0] if len(known) == 1 and known[0].shape == (node.size, other.size) else None

    def _attention(self, node: FlowNode, other: FlowNode) -> UnitMap:
        """The value's map, which is also what is known about the heads that a position bias has one number for."""
        reads = {r.role: i for i, r in enumerate(node.readings)}
        shared = query_heads(self._read(node, other, reads["query"]), node, other) if "query" in reads else None
        found = self._read(node, other, reads["value"], shared)
        graph = self.pair.anchor.graph
        for name in (s for s in node.written_spaces if graph.space(s).kind == "heads"):
            if graph.space(name).size == node.heads and name in self._asked:
                self._latest.setdefault(name, found.coarse(node.heads, other.heads))
        return found

    def _solve_layer(self, index: int) -> UnitMap:
        if self._heads is not None and self._heads.covers(index):
            return self._heads.map_of(index)
        group = self._together.get(index, (index,))
        first = group[0]
        if first != index:
            found = self.map_of(first)
            if found is not None:
                return found
        units = [self.features.all_units(i) for i in group]
        spaces = dict.fromkeys(s for i in group for s in self.pair.anchor.graph.nodes[i].written_spaces)
        cost = self.features.scaled_cost(group, units)
        self.features.forget(group)
        coupling = self.couple(self._name(group), cost, tuple(spaces))
        return UnitMap.of(coupling, self.options.unequal)

    def couple(self, name: str, cost: torch.Tensor, spaces: tuple[str, ...] = ()) -> Coupling:
        """One transport problem, noted in the report with the ids of the spaces that its map belongs to."""
        coupling = solve(cost, solver=self.options.solver, regulariser=self.regulariser)
        size = cost.shape[0], cost.shape[1]
        before = float(cost.diagonal().mean()) if size[0] == size[1] else float(cost.mean())
        self._solved.append(
            SpaceReport(
                name, self.options.solver, size, before, coupling.objective, coupling.converged,
                coupling.marginal_error, coupling.steps, spaces,
            )
        )  # fmt: skip
        return coupling

    def note_space(self, space_id: str, coupling: Coupling) -> None:
        """The map of a space that is not what a node writes as a whole, such as heads: the last problem's."""
        if any(space.id == space_id for space in self.pair.anchor.graph.spaces):
            self._solved[-1] = replace(self._solved[-1], spaces=(space_id,))
        if space_id in self._asked:
            self._latest[space_id] = UnitMap.of(coupling, self.options.unequal)

    def _name(self, group: Sequence[int]) -> str:
        return " + ".join(dict.fromkeys(self.pair.anchor.graph.nodes[i].name for i in group))

    # -- junctions ---------------------------------------------------------------------------------------------------
    def _junction(self, node: FlowNode, other: FlowNode) -> UnitMap:
        parts = [
            i
            for i, r in enumerate(node.readings)
            if r.role in ("skip", "branch") and self._mute.get(r.node) != node.index
        ]
        known = [i for i in parts if self.map_of(node.readings[i].node) is not None]
        maps = [self._read(node, other, i) for i in known]
        if not maps:
            return UnitMap.identity(node.size, other.size)
        if self.options.residual == "identity":
            return UnitMap.identity(node.size, other.size)
        weights = junction_weights(
            self.options.residual, [node.readings[i].role for i in known], self._weighed(node, known)
        )
        return mixed(maps, weights)

    def _weighed(self, node: FlowNode, parts: Sequence[int]) -> list[torch.Tensor]:
        return [self._magnitudes[magnitude_key(node.index, i)] for i in parts] if self._magnitudes else []
