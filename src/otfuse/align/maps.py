"""Maps along the walk: the two readings of a coupling, pulled from the units a node writes to where they arrive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from otfuse.errors import MatchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from otfuse.core.coupling import Coupling


@dataclass(frozen=True, slots=True, eq=False)
class UnitMap:
    """``writes[anchor, source]`` carries what writes the units, ``reads[anchor, source]`` what reads them."""

    writes: torch.Tensor
    reads: torch.Tensor

    @classmethod
    def of(cls, coupling: Coupling, unequal: str) -> UnitMap:
        """Both readings (``balanced``: averages and shares), or the published one for both."""
        if unequal == "published":
            return cls(coupling.published(), coupling.published())
        return cls(coupling.averages(), coupling.shares())

    @classmethod
    def identity(cls, anchor: int, source: int) -> UnitMap:
        """Units in their order; where the numbers differ, neighbours share (one unit of length 1/n beside another)."""
        mass = _overlap(anchor, source)
        return cls(mass / mass.sum(1, keepdim=True), mass / mass.sum(0, keepdim=True))

    @property
    def shape(self) -> tuple[int, int]:
        """Units of the anchor and of the source."""
        return self.writes.shape[0], self.writes.shape[1]

    def coarse(self, anchor: int, source: int) -> UnitMap:
        """The map of the ``anchor`` and ``source`` blocks of equal length in which the units lie."""
        blocks = (anchor, self.shape[0] // anchor, source, self.shape[1] // source)
        return UnitMap(self.writes.reshape(blocks).sum(3).mean(1), self.reads.reshape(blocks).sum(1).mean(2))

    def pulled(self, anchor: NDArray[np.int64], source: NDArray[np.int64], arrivals: UnitMap | None = None) -> UnitMap:
        """The map between places, given which units arrive there: ``anchor[n, m]`` and ``source[n', m']``.

        A unit that arrives at several places arrives there in order (places of a channel) or as ``arrivals``, a map of
        places, says (query heads that share a value); several units at one place (one matrix for all heads) are
        averaged over.
        """
        if anchor.shape[1] == source.shape[1] == 1 and _plain(anchor, self.shape[0]) and _plain(source, self.shape[1]):
            return self
        same = _in_order(anchor[:, 0], source[:, 0]) if arrivals is None else arrivals
        return UnitMap(_pull(self.writes, anchor, source) * same.writes, _pull(self.reads, anchor, source) * same.reads)


def _pull(matrix: torch.Tensor, anchor: NDArray[np.int64], source: NDArray[np.int64]) -> torch.Tensor:
    total = torch.zeros(len(anchor), len(source), dtype=matrix.dtype)
    for a in anchor.T:
        for s in source.T:
            part = matrix[torch.from_numpy(a.clip(0))][:, torch.from_numpy(s.clip(0))]
            total += part * torch.from_numpy((a >= 0)[:, None] & (s >= 0)[None, :])
    total /= anchor.shape[1]
    return total


def _in_order(anchor: NDArray[np.int64], source: NDArray[np.int64]) -> UnitMap:
    """Between the places where units arrive: the first arrival of any unit beside the first, and so on."""
    ours, theirs = _occurrences(anchor), _occurrences(source)
    same = UnitMap.identity(int(ours.max(initial=0)) + 1, int(theirs.max(initial=0)) + 1)
    rows, columns = torch.from_numpy(ours), torch.from_numpy(theirs)
    return UnitMap(same.writes[rows][:, columns], same.reads[rows][:, columns])


def block(maps: Sequence[UnitMap]) -> UnitMap:
    """Values laid end to end: each part by its own map."""
    return UnitMap(torch.block_diag(*(m.writes for m in maps)), torch.block_diag(*(m.reads for m in maps)))


def mixed(maps: Sequence[UnitMap], weights: Sequence[torch.Tensor | float]) -> UnitMap:
    """A weighted sum; a weight is a number or one number for every unit of the anchor."""

    def total(name: str) -> torch.Tensor:
        terms = []
        for m, weight in zip(maps, weights, strict=True):
            matrix: torch.Tensor = getattr(m, name)
            scale = weight[:, None].to(matrix) if isinstance(weight, torch.Tensor) else weight
            terms.append(matrix * scale)
        return torch.stack(terms).sum(0)

    return UnitMap(total("writes"), total("reads"))


def require_equal(anchor: int, source: int, what: str) -> None:
    """MatchError unless units that must keep their order are equally many."""
    if anchor != source:
        raise MatchError(
            f"{what}: {anchor} units in the anchor and {source} in the source must keep their order and cannot be "
            "matched; give models with equal sizes there, or another otfusion.query_key"
        )


def _overlap(anchor: int, source: int) -> torch.Tensor:
    """Mass of the monotone coupling of two uniform rows of units."""
    a = torch.arange(anchor + 1, dtype=torch.float64) / anchor
    s = torch.arange(source + 1, dtype=torch.float64) / source
    low = torch.maximum(a[:-1, None], s[None, :-1])
    return (torch.minimum(a[1:, None], s[None, 1:]) - low).clamp_min(0)


def _plain(units: NDArray[np.int64], size: int) -> bool:
    return len(units) == size and bool((units[:, 0] == np.arange(size)).all())


def _occurrences(units: NDArray[np.int64]) -> NDArray[np.int64]:
    """For every place: how many earlier places have the same unit."""
    order = np.argsort(units, kind="stable")
    ordered = units[order]
    starts = np.r_[True, ordered[1:] != ordered[:-1]]
    first = np.maximum.accumulate(np.where(starts, np.arange(len(units)), 0))
    result = np.empty(len(units), np.int64)
    result[order] = np.arange(len(units)) - first
    return result
