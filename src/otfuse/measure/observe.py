"""Values of a program as rows of units: the token filters of the published method, on any grid and any depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from otfuse.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from otfuse.core.graph import FlowGraph, Observation, Tokens


class Part(NamedTuple):
    """How much of a batch is real: ``real`` examples of ``size``; the rest fills it up."""

    real: int
    size: int


class RowFilter:
    """Which places of a value are compared: ``tokens`` is all, cls or window:N; ``unread`` is skip or compare."""

    def __init__(self, tokens: str, unread: str) -> None:
        self._tokens, self._skip = tokens, unread == "skip"

    def require(self, graph: FlowGraph) -> None:
        """DataError if the filter needs what the model does not have: a class token, or a large enough grid."""
        if self._tokens == "all":
            return
        known = [n.observation.tokens for n in graph.nodes if n.observation is not None and n.observation.tokens]
        grids = [tokens.grid for tokens in known if tokens.grid is not None]
        if not grids:
            raise DataError(
                f"otfusion.tokens {self._tokens}: this model has no class token beside a grid of patches; use tokens: all"
            )
        side = int(self._tokens.partition(":")[2] or 0)
        if side > min(min(grid.shape) for grid in grids):
            raise DataError(
                f"otfusion.tokens {self._tokens}: the grid has {grids[0].shape[0]} x {grids[0].shape[1]} patches; "
                "give a smaller window"
            )

    def wanted(self, seen: Sequence[Observation], size: int) -> torch.Tensor | None:
        """Which places along dimension 1 of a value ``[batch, places, size]`` anything reads; None for all of it.

        Its observations tell, if no unit is without one.
        """
        masks = [s.read for s in seen if s.dims == (2,) and s.read is not None and s.read.ndim == 1]
        units = np.unique(np.concatenate([s.units for s in seen]))
        if not self._skip or len(masks) < len(seen) or len(units) < size:
            return None
        return torch.from_numpy(np.flatnonzero(np.logical_or.reduce(masks)))

    def rows(self, value: torch.Tensor, seen: Observation, part: Part) -> torch.Tensor:
        """``[rows, units]`` of a value: of what is real of its batch, the places that are compared."""
        value = _real(value, seen, part)
        first = len(value)
        places = [d for d in range(1, value.ndim) if d not in seen.dims]
        if 0 in seen.dims:
            raise DataError(
                f"{seen.value}: units along the batch cannot be observed; this is a fault of the flow graph"
            )
        value = value.permute(0, *places, *seen.dims).reshape(first, *(value.shape[d] for d in places), -1)
        keep = self._kept(seen, [value.shape[i + 1] for i in range(len(places))], places)
        if keep is None:
            flat = value.reshape(-1, value.shape[-1])
        else:
            kept = torch.from_numpy(keep.reshape(-1).nonzero()[0]).to(value.device)
            flat = value.reshape(first, -1, value.shape[-1]).index_select(1, kept).reshape(-1, value.shape[-1])
        whole = len(seen.units) == flat.shape[1]
        return flat if whole else flat[:, torch.from_numpy(seen.units).to(flat.device)]

    def _kept(self, seen: Observation, shape: list[int], places: list[int]) -> NDArray[np.bool_] | None:
        keep = np.ones(shape, np.bool_)
        if self._skip and seen.read is not None:
            keep &= seen.read.reshape(shape)
        if self._tokens != "all" and seen.tokens is not None and seen.tokens.dim in places:
            at = places.index(seen.tokens.dim)
            mask = _window(seen.tokens, self._tokens, shape[at])
            keep &= mask.reshape([-1 if i == at else 1 for i in range(len(shape))])
        return None if keep.all() else keep


def _real(value: torch.Tensor, seen: Observation, part: Part) -> torch.Tensor:
    """The value without what fills the batch up.

    Examples lie along dimension 0, each perhaps several times (windows of an image), or, where that cannot be, along
    another one (modules that put the tokens first). A value without examples (places, relative positions) is whole.
    """
    if part.real == part.size:
        return value
    others = [d for d in range(1, value.ndim) if d not in seen.dims and value.shape[d] == part.size]
    dim = 0 if value.shape[0] % part.size == 0 else next(iter(others), None)
    return value if dim is None else value.narrow(dim, 0, value.shape[dim] // part.size * part.real)


def _window(tokens: Tokens, wanted: str, length: int) -> NDArray[np.bool_]:
    mask = np.zeros(length, np.bool_)
    mask[tokens.extra] = True
    if wanted.startswith("window:") and tokens.grid is not None:
        side, (rows, columns) = int(wanted.partition(":")[2]), tokens.grid.shape
        top, left = (rows - side) // 2, (columns - side) // 2
        mask[tokens.grid[top : top + side, left : left + side].reshape(-1)] = True
    return mask
