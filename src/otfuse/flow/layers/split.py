"""From nodes found to nodes kept: what nobody reads is dropped, fused layers are taken apart."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from otfuse.core.graph import NodeKind, Piece, Reading

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from otfuse.flow.layers.found import Found


def reachable(found: list[Found]) -> list[int]:
    """Indices of the nodes that an output reads, in order."""
    todo = [i for i, node in enumerate(found) if node.kind is NodeKind.OUTPUT]
    seen = set(todo)
    while todo:
        for r in found[todo.pop()].readings:
            if r.node not in seen:
                seen.add(r.node)
                todo.append(r.node)
    return sorted(seen)


class Part:
    """A node, or one of the parts of a fused one: ``units`` are its units' numbers in the node that was found.

    ``unread``: nobody reads these units here. Another use of the same weights may.
    """

    def __init__(self, origin: int, found: Found, units: NDArray[np.int64], *, unread: bool) -> None:
        self.origin, self.found, self.units, self.unread = origin, found, units, unread

    def pieces(self) -> tuple[Piece, ...]:
        """Stored tensors, restricted to the part's units; none if these are unread."""
        return (
            ()
            if self.unread
            else tuple(
                replace(p, writes=(p.writes[0], p.writes[1][self.units]) if p.writes is not None else None)
                for p in self.found.pieces
            )
        )


def take_apart(found: list[Found]) -> tuple[list[Part], dict[int, NDArray[np.int64]]]:
    """Parts in order; and for every node found, where its units went: ``[units, 2]`` of (part, unit).

    Units of one layer that have different readers (query, key and value of a fused projection) are different parts:
    each has maps of its own.
    """
    kept = reachable(found)
    readers: dict[int, dict[tuple[int, str], NDArray[np.bool_]]] = {i: {} for i in kept}
    for i in kept:
        for r in found[i].readings:
            read = readers[r.node].setdefault((i, r.role), np.zeros(found[r.node].size, np.bool_))
            read[r.units[r.units >= 0]] = True
    parts: list[Part] = []
    went: dict[int, NDArray[np.int64]] = {}
    for i in kept:
        splits = found[i].kind in (NodeKind.LINEAR, NodeKind.SOURCE)
        table = np.full((found[i].size, 2), -1, np.int64)
        for units in _alike(list(readers[i].values()) if splits else [], found[i].size):
            table[units, 0], table[units, 1] = len(parts), np.arange(len(units))
            unread = splits and len(readers[i]) > 0 and not any(mask[units].any() for mask in readers[i].values())
            parts.append(Part(i, found[i], units, unread=unread))
        went[i] = table
    return parts, went


def _alike(masks: list[NDArray[np.bool_]], size: int) -> list[NDArray[np.int64]]:
    """Units grouped by the masks that hold them, in the order of their first units."""
    labels = np.zeros(size, np.int64)
    for mask in masks:
        labels = np.unique(labels * 2 + mask, return_inverse=True)[1].reshape(-1)
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return sorted(groups, key=lambda units: int(units[0])) or [np.empty(0, np.int64)]


def rerouted(reading: Reading, went: dict[int, NDArray[np.int64]]) -> list[Reading]:
    """A reading in terms of parts: one for every part that it reads, other places left empty (-1)."""
    table = went[reading.node]
    targets = np.where(reading.units >= 0, table[reading.units, 0], -1)
    return [
        Reading(reading.role, int(part), np.where(targets == part, table[reading.units, 1], -1))
        for part in np.unique(targets)
        if part >= 0
    ]
