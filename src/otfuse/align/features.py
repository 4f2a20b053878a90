"""What is compared of the units of a node: rows of weights carried by the input map, or moments of activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from otfuse.align.matrix import along, is_identity
from otfuse.align.pair import Pair, read_rows, unit_rows
from otfuse.core.graph import NodeKind
from otfuse.errors import DataError
from otfuse.solve.cost import between, scaled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from numpy.typing import NDArray

    from otfuse.align.maps import UnitMap
    from otfuse.core.options import OTFusion
    from otfuse.measure.moments import Moments


class Features:
    """Costs between the units of nodes, by the options of the recipe.

    ``moments`` are those of observed nodes (activations); ``inputs`` gives the map of what a node reads (weights).
    """

    def __init__(
        self,
        pair: Pair,
        options: OTFusion,
        moments: dict[int, Moments] | None,
        inputs: Callable[[int], UnitMap | None],
        *,
        last: bool,
    ) -> None:
        self._pair, self._options, self._moments, self._inputs = pair, options, moments, inputs
        self._last = last

    def forget(self, nodes: Sequence[int]) -> None:
        """The moments of these nodes were compared; if this is the last walk, they need not be held."""
        if self._last and self._moments is not None:
            for node in nodes:
                self._moments.pop(node, None)

    def cost(self, nodes: Sequence[int], units: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> torch.Tensor:
        """Unscaled cost ``[na, ns]`` of units that several nodes (or parts of them) share: their features together.

        ``units`` are, for every node, the anchor's and the source's units in corresponding order.
        """
        if self._compares_activations(nodes):
            told = [(node, own) for node, own in zip(nodes, units, strict=True) if not self._is_constant(node)]
            return self._from_moments(*zip(*told, strict=True))
        tables = [self._rows(node, own) for node, own in zip(nodes, units, strict=True)]
        stored = self._options.features == "activations"  # a stored table is compared raw in that mode
        unit = self._options.transform == "unit" and not stored
        return between(*zip(*tables, strict=True), kind=self._options.cost, unit=unit)

    def scaled_cost(
        self, nodes: Sequence[int], units: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]
    ) -> torch.Tensor:
        """The cost divided by its scale."""
        return scaled(self.cost(nodes, units), self._options.cost_scale)

    def all_units(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Every unit of a node, in both models."""
        anchor, source = self._pair.nodes(index)
        return np.arange(anchor.size), np.arange(source.size)

    def _compares_activations(self, nodes: Sequence[int]) -> bool:
        if self._options.features != "activations" or not all(self._pair.observed(node) for node in nodes):
            return False
        return not all(self._is_constant(node) for node in nodes)

    def _is_constant(self, index: int) -> bool:
        """Whether a node's values are the same for every input and place: they tell nothing, its weights do.

        A table of which the inputs read one row only (one token type), and what the class token asks in the first block
        where predictions read nothing else. Where unread values are compared too, as published, so are the constants.
        """
        if self._moments is None or index not in self._moments:
            return False
        found = self._moments[index]
        if not is_source(self._pair, index) and (self._options.unread == "compare" or found.rows < 2):  # one example
            return False
        flat = bool((found.anchor_square == 0).all()) or bool((found.source_square == 0).all())
        return flat and self._pair.main_piece(index) is not None

    def _from_moments(
        self, nodes: Sequence[int], units: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]
    ) -> torch.Tensor:
        if self._moments is None:
            raise DataError("otfusion.features activations: give data (unlabelled inputs), or use features: weights")
        transform = self._options.transform
        assert transform != "unit"  # the recipe refuses it for activations
        parts = [self._moments[n].taken(*own) for n, own in zip(nodes, units, strict=True)]
        if len(parts) == 1:
            return parts[0].distance(transform, self._options.cost)
        total = parts[0].transformed(transform)  # the published code transforms queries and keys each by itself
        for part in parts[1:]:
            total = total.stacked(part.transformed(transform))
        return total.distance("none", self._options.cost)

    def _rows(
        self, index: int, units: tuple[NDArray[np.int64], NDArray[np.int64]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Feature rows of both models; the source's are carried to the anchor's inputs first."""
        which = self._pair.main_piece(index)
        if which is None:
            node = self._pair.anchor.graph.nodes[index]
            advice = "use features: activations"
            if self._options.features == "activations":
                advice = (
                    "nor does it take a value for every example; merge what makes its weights (adapters) into one first"
                )
            raise DataError(f"{node.name or 'the model'}, {node.where}: has no weights to compare; {advice}")
        pieces = [node.pieces[which] for node in self._pair.nodes(index)]
        if pieces[0].reads is None or pieces[0].writes is None:
            anchor, source = (
                unit_rows(side, piece, own) for side, piece, own in zip(self._pair.sides(), pieces, units, strict=True)
            )
            return anchor, source
        ours, theirs = (
            read_rows(side, piece, own) for side, piece, own in zip(self._pair.sides(), pieces, units, strict=True)
        )
        incoming = self._inputs(index)
        if incoming is not None and not is_identity(incoming.reads):
            theirs = along(incoming.reads, theirs.double(), 1)
        return ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1)


def is_source(pair: Pair, index: int) -> bool:
    """Whether the node is a stored table or a layer on the input."""
    return pair.anchor.graph.nodes[index].kind is NodeKind.SOURCE
