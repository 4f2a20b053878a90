"""Spaces on cross moments of nodes instead of stored tensors: where their units lie among those that a node writes."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import torch

from otfuse.align.elements import Place, carried, places
from otfuse.align.laid import Laid
from otfuse.core.graph import NodeKind
from otfuse.errors import UnequalError
from otfuse.measure.observe import RowFilter
from otfuse.measure.probe import pair_moments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from otfuse.align.frame import Frame
    from otfuse.align.spaces import Spaces
    from otfuse.core.dataset import Dataset
    from otfuse.core.graph import FlowGraph, FlowNode
    from otfuse.measure.probe import Side

_COMPARED = (NodeKind.NORM, NodeKind.ACTIVATION, NodeKind.PRODUCT, NodeKind.ATTENTION, NodeKind.LINEAR)
_STANDARD = (NodeKind.ACTIVATION, NodeKind.PRODUCT)  # every unit by its own deviation: no map mixes them


def cross_moments(
    anchor: Side,
    source: Side,
    names: Iterable[str],
    data: Dataset,
    tell: Callable[[int, int], None] | None = None,
) -> dict[str, torch.Tensor]:
    """``[anchor units, source units]`` of the values of nodes ``@index`` on the same inputs, as if of tables of length one.

    ``anchor`` and ``source`` have canonical, balanced weights. Values are taken about their means, but for those of norms, whose
    means are part of what is read.
    """
    found = pair_moments(anchor, source, data, [int(name[1:]) for name in names], RowFilter("all", "skip"), tell)
    tables: dict[str, torch.Tensor] = {}
    for index, moments in found.items():
        node = anchor.graph.nodes[index]
        if node.kind in _STANDARD and moments.rows > 1:
            moments = moments.transformed("standardize")
        cross, squares = moments.cross, [moments.anchor_square, moments.source_square]
        if node.kind is NodeKind.NORM:
            cross = cross.addr(moments.anchor_mean, moments.source_mean, alpha=moments.rows)
            means = moments.anchor_mean, moments.source_mean
            squares = [q + moments.rows * m.square() for q, m in zip(squares, means, strict=True)]
        size = float(squares[0].sum() * squares[1].sum()) ** 0.5
        tables[f"@{index}"] = cross / size if size > 0 else cross
    return tables


class FramedNodes:
    """Units of nodes of models of other widths, in the frame of their spaces; ``sides`` in their own sizes.

    ``places`` are those of every space; a node of which units cannot be told to correspond has none.
    """

    def __init__(self, frame: Frame, sides: Sequence[Side]) -> None:
        where = [places_at(side.graph, own) for side, own in zip(sides, frame.each, strict=True)]
        self._frame = frame
        self._laid = Laid([own.elsewhere(found) for own, found in zip(frame.each, where, strict=True)])
        for name in dict.fromkeys(place.tensor for own in where[0].values() for place in own):
            with suppress(UnequalError):
                self._laid.add(name, 1, [side.graph.nodes[int(name[1:])].size for side in sides])
        self.places = {key: places(slots) for key, slots in self._laid.slots.items()}

    def moments(self, name: str, cross: torch.Tensor, models: tuple[int, int], spaces: Spaces) -> torch.Tensor:
        """Cross moments ``[units, units]`` of a node of two models, in the frame and of tables of length one again."""
        at = self._laid.axes.get((name, 1))
        if at is not None:
            rows, columns = (torch.from_numpy(at.at[k]) for k in models)
            wide = cross.new_zeros(at.size, at.size)
            wide[rows[:, None], columns] = cross
            cross = wide
        for k in models:  # the first one's axis as the second, then the other's
            cross = carried(cross.T, self._frame.first(name, k, spaces, lengths=False))
        return cross


def places_at(graph: FlowGraph, spaces: Spaces) -> dict[str, list[Place]]:
    """For every space its places among the units of nodes, as if their values were tensors ``@node`` ``[rows, units]``."""
    known = [
        (node, list(_columns(graph, node)))
        for node in graph.nodes
        if node.observation is not None and node.kind in _COMPARED
    ]
    found: dict[str, list[Place]] = {}
    for key, own in spaces.places.items():
        made_at: dict[tuple[int, bytes], Place] = {}
        for node, columns in known:
            for place in own:
                for made in _seen(place, columns, f"@{node.index}"):
                    made_at.setdefault((node.index, np.sort(made.positions.numpy(), axis=None).tobytes()), made)
        norms = [p for (index, _), p in made_at.items() if graph.nodes[index].kind is NodeKind.NORM]
        stream = spaces.all[key].space.kind == "stream"
        found[key] = norms if stream and norms else list(made_at.values())
    return found


def _columns(graph: FlowGraph, node: FlowNode) -> Iterator[tuple[str, int, bool, Mapping[int, int]]]:
    """(tensor, axis, whether it reads, position -> unit of the node) of what writes a layer's units and what reads them."""
    for piece in node.pieces if node.kind is NodeKind.LINEAR else ():
        if piece.writes is not None:
            yield piece.tensor, piece.writes[0], False, {int(t): u for u, t in enumerate(piece.writes[1])}
    for reader in graph.nodes:
        for reading in reader.readings if reader.kind is NodeKind.LINEAR else ():
            for piece in reader.pieces if reading.node == node.index else ():
                if piece.reads is not None:
                    units = reading.units[:, 0]
                    yield (
                        piece.tensor,
                        piece.reads[0],
                        True,
                        {int(t): int(u) for t, u in zip(piece.reads[1], units, strict=True) if u >= 0},
                    )


def _seen(place: Place, columns: list[tuple[str, int, bool, Mapping[int, int]]], name: str) -> Iterator[Place]:
    for tensor, axis, reads, unit in columns:
        if (
            (tensor, axis) != (place.tensor, place.axis)
            or place.batch_axis is not None
            or reads != (place.inverse and reads)
        ):
            continue
        at = place.positions.numpy()
        widths = [w for w in range(at.shape[2]) if all(int(i) in unit for i in at[:, :, w].reshape(-1))]
        if widths and not (place.order_only and reads):
            units = np.vectorize(unit.__getitem__, otypes=[np.int64])(at[:, :, widths])
            yield Place(name, 1, torch.from_numpy(units), place.inverse and not reads, place.order_only)
