"""Maps along the walk: the two readings of a coupling, pulled from the units a node writes to where they arrive."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from otfuse.align import matrix
from otfuse.errors import MatchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from otfuse.align.matrix import Matrix
    from otfuse.core.coupling import Coupling


@dataclass(frozen=True, slots=True, eq=False)
class UnitMap:
    """``writes[anchor, source]`` carries what writes the units, ``reads[anchor, source]`` what reads them."""

    writes: Matrix
    reads: Matrix

    @classmethod
    def of(cls, coupling: Coupling, unequal: str) -> UnitMap:
        """Both readings (``balanced``: averages and shares), or the published one for both."""
        if unequal == "published":
            both = matrix.compact(coupling.published())
            return cls(both, both)
        mass = matrix.compact(coupling.mass)
        return cls(matrix.averages(mass), matrix.shares(mass))

    @classmethod
    def identity(cls, anchor: int, source: int) -> UnitMap:
        """Units in their order; where the numbers differ, neighbours share (one unit of length 1/n beside another)."""
        if anchor == source:
            return cls(matrix.identity(anchor), matrix.identity(anchor))
        mass = matrix.overlap(anchor, source)
        return cls(matrix.averages(mass), matrix.shares(mass))

    @property
    def shape(self) -> tuple[int, int]:
        """Units of the anchor and of the source."""
        return self.writes.shape[0], self.writes.shape[1]

    def coarse(self, anchor: int, source: int) -> UnitMap:
        """The map of the ``anchor`` and ``source`` blocks of equal length in which the units lie."""
        width = self.shape[0] // anchor, self.shape[1] // source
        rows, columns = np.arange(self.shape[0]) // width[0], np.arange(self.shape[1]) // width[1]
        total = [matrix.sums(m, rows, columns, (anchor, source)) for m in (self.writes, self.reads)]
        return UnitMap(matrix.scaled(total[0], 1 / width[0]), matrix.scaled(total[1], 1 / width[1]))

    def pulled(self, anchor: NDArray[np.int64], source: NDArray[np.int64], arrivals: UnitMap | None = None) -> UnitMap:
        """The map between places, given which units arrive there: ``anchor[n, m]`` and ``source[n', m']``.

        A unit that arrives at several places arrives there in order (places of a channel) or as ``arrivals``, a map of
        places, says (query heads that share a value); several units at one place (one matrix for all heads) are
        averaged over.
        """
        if anchor.shape[1] == source.shape[1] == 1 and _plain(anchor, self.shape[0]) and _plain(source, self.shape[1]):
            return self
        found = UnitMap(_pull(self.writes, anchor, source), _pull(self.reads, anchor, source))
        if arrivals is not None:
            places = [np.arange(n) for n in found.shape]
            return found._timed(arrivals, places[0], places[1])
        ours, theirs = _occurrences(anchor[:, 0]), _occurrences(source[:, 0])
        sizes = int(ours.max(initial=0)) + 1, int(theirs.max(initial=0)) + 1
        return found if sizes == (1, 1) else found._timed(UnitMap.identity(*sizes), ours, theirs)

    def _timed(self, pattern: UnitMap, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> UnitMap:
        return UnitMap(
            matrix.times(self.writes, pattern.writes, rows, columns),
            matrix.times(self.reads, pattern.reads, rows, columns),
        )


def _pull(found: Matrix, anchor: NDArray[np.int64], source: NDArray[np.int64]) -> Matrix:
    parts = [
        matrix.masked(matrix.take(found, a.clip(0), s.clip(0)), a >= 0, s >= 0) for a in anchor.T for s in source.T
    ]
    total = parts[0]
    for part in parts[1:]:
        total = matrix.plus(total, part)
    return total if anchor.shape[1] == 1 else matrix.scaled(total, 1 / anchor.shape[1])


def block(maps: Sequence[UnitMap]) -> UnitMap:
    """Values laid end to end: each part by its own map."""
    return UnitMap(matrix.blocks([m.writes for m in maps]), matrix.blocks([m.reads for m in maps]))


def mixed(maps: Sequence[UnitMap], weights: Sequence[torch.Tensor | float]) -> UnitMap:
    """A weighted sum; a weight is a number or one number for every unit of the anchor."""

    def total(name: str) -> Matrix:
        terms = [matrix.scaled(getattr(m, name), weight) for m, weight in zip(maps, weights, strict=True)]
        return reduce(matrix.plus, terms)

    return UnitMap(total("writes"), total("reads"))


def require_equal(anchor: int, source: int, what: str) -> None:
    """MatchError unless units that must keep their order are equally many."""
    if anchor != source:
        raise MatchError(
            f"{what}: {anchor} units in the anchor and {source} in the source must keep their order and cannot be "
            "matched; give models with equal sizes there, or another otfusion.query_key"
        )


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
