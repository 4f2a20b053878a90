"""From the maps of nodes to instructions for every stored tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from otfuse.align.maps import UnitMap
from otfuse.core.alignment import AxisMap, Carry
from otfuse.core.space import Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from otfuse.align.pair import Pair
    from otfuse.core.graph import Piece
    from otfuse.core.space import Member


class Carrier:
    """Collects carries; every place of a stored tensor is carried once, by the first node that uses it."""

    def __init__(
        self, pair: Pair, map_of: Callable[[int], UnitMap | None], incoming: Callable[[int], UnitMap | None]
    ) -> None:
        self._pair, self._map_of, self._incoming = pair, map_of, incoming
        self._used: dict[str, tuple[int, set[int]]] = {}
        self._notes: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """What was carried by the maps of its spaces because no layer of the flow uses it."""
        return tuple(self._notes)

    def all(self, *, skip: frozenset[str], latest: dict[str, UnitMap]) -> tuple[Carry, ...]:
        """Carries of all stored tensors that predictions read, except those in ``skip``."""
        carries = []
        for node in self._pair.anchor.graph.nodes:
            other = self._pair.source.graph.nodes[node.index]
            for ours, theirs in zip(node.pieces, other.pieces, strict=True):
                if ours.tensor not in skip and self._claim(ours):
                    carry = self._piece(node.index, ours, theirs)
                    carries += [carry] if carry is not None else []
        graph = self._pair.anchor.graph
        for name, first in graph.ties.items():
            if name == first and name not in self._used and name not in skip and name not in graph.unread:
                carries += self._by_spaces(name, latest)
        return tuple(carries)

    def _claim(self, piece: Piece) -> bool:
        if piece.writes is None:
            return False
        axis, places = piece.writes[0], set(piece.writes[1].tolist())
        owner, used = self._used.setdefault(piece.tensor, (axis, set()))
        if owner != axis or used & places:
            return False
        used |= places
        return True

    def _piece(self, index: int, ours: Piece, theirs: Piece) -> Carry | None:
        found, axes = self._map_of(index), list[AxisMap]()
        assert ours.writes is not None and theirs.writes is not None  # noqa: PT018  # claimed
        if found is not None:
            axes.append(_reduced(ours.writes[0], found.writes, ours.writes[1], theirs.writes[1]))
        if ours.reads is not None and theirs.reads is not None:
            incoming = self._incoming(index)
            if incoming is not None:
                axes.append(AxisMap(ours.reads[0], incoming.reads, ours.reads[1], theirs.reads[1]))
        return Carry(ours.tensor, tuple(axes)) if axes else None

    def _by_spaces(self, name: str, latest: dict[str, UnitMap]) -> list[Carry]:
        """A tensor that no layer of the flow uses (experts, position biases): by the maps of its spaces."""
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
                matrix = UnitMap.identity(n, m).writes
                axes[axis] = AxisMap(axis, matrix, np.arange(n), np.arange(m))
        self._notes.append(f"{name}: {told}")
        return [Carry(name, tuple(axes.values()))] if axes else []


def _whole(found: UnitMap, ours: Member, theirs: Member) -> AxisMap:
    matrix = found.reads if ours.role is Role.CONSUMES else found.writes
    width = ours.positions.shape[2]
    places = [m.positions.reshape(-1) for m in (ours, theirs)]
    return AxisMap(ours.axis, torch.kron(matrix, torch.eye(width, dtype=matrix.dtype)), places[0], places[1])


def _reduced(axis: int, matrix: torch.Tensor, ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> AxisMap:
    """A map of units as a map of places: units that share a place (one gain for all heads) are averaged over."""
    rows, row_of = np.unique(ours, return_inverse=True)
    columns, column_of = np.unique(theirs, return_inverse=True)
    if len(rows) == len(ours) and len(columns) == len(theirs):
        return AxisMap(axis, matrix, ours, theirs)
    left = torch.zeros(len(rows), len(ours), dtype=matrix.dtype)
    left[torch.from_numpy(row_of), torch.arange(len(ours))] = 1
    left /= left.sum(1, keepdim=True)
    right = torch.zeros(len(theirs), len(columns), dtype=matrix.dtype)
    right[torch.arange(len(theirs)), torch.from_numpy(column_of)] = 1
    return AxisMap(axis, left @ matrix @ right, rows, columns)
