"""Two matched models, as a scheme sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from otfuse.core.graph import NodeKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from otfuse.core.graph import FlowNode, Piece
    from otfuse.measure.probe import Side


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """The anchor and one source; node ``i`` of one graph is node ``i`` of the other."""

    anchor: Side
    source: Side

    def nodes(self, index: int) -> tuple[FlowNode, FlowNode]:
        """A node of the anchor and its counterpart."""
        return self.anchor.graph.nodes[index], self.source.graph.nodes[index]

    def sides(self) -> tuple[Side, Side]:
        """Anchor, source."""
        return self.anchor, self.source

    def observed(self, index: int) -> bool:
        """Whether the node's units are values that depend on the input."""
        return all(node.observation is not None for node in self.nodes(index))

    def main_piece(self, index: int) -> int | None:
        """Which of the node's tensors makes its units: the first that has more than the units themselves.

        A single stored token may be one value per unit and no more; elsewhere such tensors are biases.
        """
        node = self.anchor.graph.nodes[index]
        shapes = self.anchor.graph.shapes
        written = [i for i, p in enumerate(node.pieces) if p.writes is not None]
        many = [i for i in written if len(shapes[node.pieces[i].tensor]) > 1 or node.kind is NodeKind.SOURCE]
        many.sort(key=lambda i: len(shapes[node.pieces[i].tensor]) == 1)
        return many[0] if many else None

    def producer(self, index: int) -> int:
        """The node whose units pass through this one unchanged in number: norms, activations and scalings looked through."""
        node = self.anchor.graph.nodes[index]
        keeps = (NodeKind.ACTIVATION, NodeKind.NORM, NodeKind.SCALE)
        while node.kind in keeps and node.readings:
            node = self.anchor.graph.nodes[node.readings[0].node]
        return node.index

    def fixed(self, index: int) -> bool:
        """Whether the units that the node writes must keep their order: classes, words, places, what no rule followed."""
        graph = self.anchor.graph
        node = graph.nodes[index]
        if not node.written_spaces:
            return True
        spaces = [graph.space(s) for s in node.written_spaces]
        return all(space.pinned is not None for space in spaces)


def unit_rows(side: Side, piece: Piece, units: NDArray[np.int64] | None = None) -> torch.Tensor:
    """``[units, features]``, a view where it can be: the slices of a stored tensor along the axis that the node writes."""
    assert piece.writes is not None  # the caller asks for pieces that write
    axis, places = piece.writes
    chosen = places if units is None else places[units]
    tensor = _chosen(side.weights[piece.tensor].detach().cpu(), axis, chosen)
    return tensor.movedim(axis, 0).flatten(1) if tensor.ndim > 1 else tensor[:, None]


def read_rows(side: Side, piece: Piece, units: NDArray[np.int64]) -> torch.Tensor:
    """``[units, places, rest]`` of a matrix or kernel that reads: rows by what they read."""
    assert piece.writes is not None and piece.reads is not None  # noqa: PT018
    tensor = side.weights[piece.tensor].detach().cpu()
    tensor = _chosen(tensor, piece.writes[0], piece.writes[1][units])
    tensor = _chosen(tensor, piece.reads[0], piece.reads[1])
    rest = [d for d in range(tensor.ndim) if d not in (piece.writes[0], piece.reads[0])]
    out = tensor.permute(piece.writes[0], piece.reads[0], *rest)
    return out.reshape(out.shape[0], out.shape[1], -1)


def _chosen(tensor: torch.Tensor, axis: int, places: NDArray[np.int64]) -> torch.Tensor:
    if len(places) == tensor.shape[axis] and bool((places == np.arange(len(places))).all()):
        return tensor
    return tensor.index_select(axis, torch.from_numpy(places))


def concat(arrays: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Arrays end to end."""
    return np.concatenate(arrays) if arrays else np.empty(0, np.int64)
