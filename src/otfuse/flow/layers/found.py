"""Layer-level nodes while they are found: a list that grows in the order of the forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch

from otfuse.core.graph import NodeKind, Piece, Reading
from otfuse.flow.follow.numbers import nodes_of, numbered, row
from otfuse.program.whereabouts import called

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import fx

    from otfuse.flow.follow.numbers import Row, Units


@dataclass(slots=True)
class Found:
    """A node before it is frozen: ``at`` is the program's node where its units can be seen, along ``dims``."""

    kind: NodeKind
    at: fx.Node
    dims: tuple[int, ...]
    size: int
    readings: list[Reading] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    heads: int = 1
    contracts: bool = False  # it sums over what it reads, or over the input
    stored: bool = False  # a stored tensor as it is: nothing to observe

    @property
    def name(self) -> str:
        """The module that holds it, of a stored tensor itself the tensor."""
        if not self.at.meta.get("nn_module_stack") and self.pieces:
            return self.pieces[0].tensor
        stack = list((called(self.at).meta.get("nn_module_stack") or {}).values())
        path = str(stack[-1][0]) if stack else ""
        return path.removeprefix("model.") if path != "model" else ""


class Nodes:
    """The nodes found so far."""

    def __init__(self) -> None:
        self.found: list[Found] = []
        self._contractions: dict[int, int] = {}

    def add(
        self,
        kind: NodeKind,
        at: fx.Node,
        shape: Sequence[int],
        dims: Sequence[int],
        *,
        readings: Sequence[Reading] = (),
        pieces: Sequence[Piece] = (),
    ) -> torch.Tensor:
        """A node whose value has this shape, with units along ``dims``; returns the numbers that it writes."""
        size = prod(shape[d] for d in dims)
        self.found.append(Found(kind, at, tuple(dims), size, list(readings), list(pieces)))
        return numbered(len(self.found) - 1, shape, dims)

    @property
    def last(self) -> Found:
        """The node added last."""
        return self.found[-1]

    def contractions(self, index: int) -> int:
        """The fewest contractions on any way back from a node to a stored table or the input."""
        if index not in self._contractions:
            node = self.found[index]
            own = int(node.kind in (NodeKind.LINEAR, NodeKind.ATTENTION) or node.contracts)
            behind = [self.contractions(r.node) for r in node.readings if r.role != "beside"]
            self._contractions[index] = own + min(behind, default=0)
        return self._contractions[index]


def reading(role: str, found: Row, units: NDArray[np.int64] | None = None) -> Reading:
    """What a node reads at a row: by default unit by unit."""
    table = found.units.reshape(-1, 1) if units is None else units
    return Reading(role, found.node, table.astype(np.int64))


def contracted(role: str, found: Row, dim: int) -> Reading:
    """What arrives along a dimension that is summed over; other dimensions with units are alternatives."""
    moved = np.moveaxis(found.units, found.dims.index(dim), 0)
    table = moved.reshape(moved.shape[0], -1)
    if table.shape[1] == 1:
        return Reading(role, found.node, table.astype(np.int64))
    first = np.unique(table, axis=1, return_index=True)[1]  # the same alternative at another place is no other one
    return Reading(role, found.node, table[:, np.sort(first)].astype(np.int64))


def beside(ids: torch.Tensor, found: Row) -> list[Reading]:
    """What stands at other places of the same value: a class token beside the patches."""
    others = nodes_of(ids) - {found.node}
    rows = [row(ids, writer=other) for other in sorted(others)]
    return [reading("beside", other) for other in rows if other is not None and other.dims == found.dims]


def passed(value: Units, found: Row) -> list[Reading]:
    """What arrives unit by unit, and what stands beside it."""
    return [reading("input", found), *beside(value.ids, found)]
