"""From the maps of nodes to instructions for every stored tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from otfuse.align import matrix
from otfuse.align.maps import UnitMap
from otfuse.core.alignment import AxisMap, Carry
from otfuse.core.space import Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from otfuse.align.matrix import Matrix
    from otfuse.align.pair import Pair
    from otfuse.core.graph import FlowGraph, Piece
    from otfuse.core.space import Member


class Claims:
    """Which node carries which place of which stored tensor: every place once, by the first node that uses it.

    ``complete`` names, for every node, the tensors whose last piece it carries; ``unclaimed`` are those that no layer of
    the flow uses (experts, position biases), though predictions read them.
    """

    def __init__(self, graph: FlowGraph, skip: frozenset[str]) -> None:
        self.pieces: dict[int, list[int]] = {}
        self._used: dict[str, tuple[int, set[int]]] = {}
        last: dict[str, int] = {}
        for node in graph.nodes:
            for i, piece in enumerate(node.pieces):
                if piece.tensor not in skip and self._claim(piece):
                    self.pieces.setdefault(node.index, []).append(i)
                    last[piece.tensor] = node.index
        self.complete: dict[int, list[str]] = {}
        for name, index in last.items():
            self.complete.setdefault(index, []).append(name)
        self.unclaimed = tuple(
            name
            for name, first in graph.ties.items()
            if name == first and name not in self._used and name not in skip and name not in graph.unread
        )

    def _claim(self, piece: Piece) -> bool:
        if piece.writes is None:
            return False
        axis, places = piece.writes[0], set(piece.writes[1].tolist())
        owner, used = self._used.setdefault(piece.tensor, (axis, set()))
        if owner != axis or used & places:
            return False
        used |= places
        return True


class Carrier:
    """Makes carries: of the pieces that a node claims when its map is known, of the rest by the maps of their spaces."""

    def __init__(
        self,
        pair: Pair,
        claims: Claims,
        map_of: Callable[[int], UnitMap | None],
        incoming: Callable[[int], UnitMap | None],
    ) -> None:
        self._pair, self._claims, self._map_of, self._incoming = pair, claims, map_of, incoming
        self._waiting: dict[str, list[Carry]] = {}
        self.notes: list[str] = []  # what was carried by the maps of its spaces because no layer of the flow uses it

    def at(self, index: int) -> dict[str, tuple[Carry, ...]]:
        """The tensors that are complete with this node, with all their carries (none: taken as it is)."""
        ours, theirs = self._pair.nodes(index)
        for i in self._claims.pieces.get(index, ()):
            carry = self._piece(index, ours.pieces[i], theirs.pieces[i])
            self._waiting.setdefault(ours.pieces[i].tensor, []).extend([carry] if carry is not None else [])
        return {name: tuple(self._waiting.pop(name)) for name in self._claims.complete.get(index, ())}

    def _piece(self, index: int, ours: Piece, theirs: Piece) -> Carry | None:
        found, axes = self._map_of(index), list[AxisMap]()
        assert ours.writes is not None and theirs.writes is not None  # noqa: PT018  # claimed
        if found is not None:
            axes.append(_reduced(ours.writes[0], found.writes, ours.writes[1], theirs.writes[1]))
        if ours.reads is not None and theirs.reads is not None:
            incoming = self._incoming(index)
            if incoming is not None:
                axes.append(AxisMap(ours.reads[0], incoming.reads, ours.reads[1], theirs.reads[1]))
        shapes = (graph.shapes[ours.tensor] for graph in (self._pair.anchor.graph, self._pair.source.graph))
        axes = [axis for axis, sizes in _with_sizes(axes, *shapes) if not _stays(axis, *sizes)]
        return Carry(ours.tensor, tuple(axes)) if axes else None

    def by_spaces(self, name: str, latest: dict[str, UnitMap]) -> tuple[Carry, ...]:
        """A tensor that no layer of the flow uses: by the maps of its spaces."""
        ours, theirs = self._pair.anchor.graph, self._pair.source.graph
        axes, told = dict[int, AxisMap](), "carried by the maps of its spaces"
        for space in ours.spaces:
            for i, member in enumerate(space.members):
                if member.tensor != name or member.axis in axes or space.copies != 1 or space.id not in latest:
                    continue
                counterpart = next((s for s in theirs.spaces if s.id == space.id), None)
                if counterpart is None or i >= len(counterpart.members):
                    continue
                sizes = space.size, counterpart.size
                if latest[space.id].shape != sizes:  # the map of a node that writes more than the space
                    told = f"no map of {space.name} was found, and it is taken in the source's own order"
                    continue
                axes[member.axis] = _whole(latest[space.id], member, counterpart.members[i])
        shapes = ours.shapes[name], theirs.shapes[name]
        for axis, (n, m) in enumerate(zip(*shapes, strict=True)):
            if n != m and axis not in axes:
                axes[axis] = AxisMap(axis, UnitMap.identity(n, m).writes, np.arange(n), np.arange(m))
        self.notes.append(f"{name}: {told}")
        return (Carry(name, tuple(axes.values())),) if axes else ()


def _with_sizes(
    axes: list[AxisMap], ours: tuple[int, ...], theirs: tuple[int, ...]
) -> list[tuple[AxisMap, tuple[int, int]]]:
    return [(axis, (ours[axis.axis], theirs[axis.axis])) for axis in axes]


def _stays(axis: AxisMap, ours: int, theirs: int) -> bool:
    """Whether the map leaves a whole axis as it is."""
    whole = ours == theirs == len(axis.anchor) == len(axis.source)
    return whole and matrix.is_identity(axis.matrix) and bool((axis.anchor == axis.source).all())


def _whole(found: UnitMap, ours: Member, theirs: Member) -> AxisMap:
    own = found.reads if ours.role is Role.CONSUMES else found.writes
    places = [m.positions.reshape(-1) for m in (ours, theirs)]
    return AxisMap(ours.axis, matrix.widened(own, ours.positions.shape[2]), places[0], places[1])


def _reduced(axis: int, found: Matrix, ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> AxisMap:
    """A map of units as a map of places: units that share a place (one gain for all heads) are averaged over."""
    rows, row_of = np.unique(ours, return_inverse=True)
    columns, column_of = np.unique(theirs, return_inverse=True)
    if len(rows) == len(ours) and len(columns) == len(theirs):
        return AxisMap(axis, found, ours, theirs)
    total = matrix.sums(found, row_of, column_of, (len(rows), len(columns)))
    return AxisMap(axis, matrix.scaled(total, torch.from_numpy(1 / np.bincount(row_of))), rows, columns)
