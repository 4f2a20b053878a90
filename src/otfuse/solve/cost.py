"""Costs between the units of two models, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from otfuse.errors import SolveError
from otfuse.measure.metric import FLAT, CostKind, from_products

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CostScale = Literal["max", "mean", "median", "none"]

# Below this part of |x|^2 + |y|^2 the expanded form of |x - y|^2 has fewer than 9 right digits: computed directly.
_CLOSE = 1e-6
_CHUNK = 1 << 22  # values of a block
_COLUMNS = 128  # features of a block at least
_TINY = 1e-9


def between(
    anchor: torch.Tensor | Sequence[torch.Tensor],
    source: torch.Tensor | Sequence[torch.Tensor],
    *,
    kind: CostKind,
    unit: bool = False,
) -> torch.Tensor:
    """Cost of every pair of units: ``[na, ns]`` in float64 from features ``anchor[na, k]`` and ``source[ns, k]``.

    Features may be given in parts, side by side; they are worked on in blocks of features, so that a table of a whole
    vocabulary is never written out in float64. ``unit`` divides every unit's features by their norm + 1e-9 first.
    ``euclidean`` and ``sqeuclidean`` are exactly zero for equal features; ``cosine`` is ``1 - cos`` and ``correlation``
    one minus Pearson's over the ``k`` features: in both a unit without direction (zero, or constant) costs 1 with all.
    Raises :class:`SolveError` for shapes that do not fit or an unknown kind.
    """
    pairs = list(zip(*([t] if isinstance(t, torch.Tensor) else list(t) for t in (anchor, source)), strict=True))
    for x, y in pairs:
        if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
            msg = (
                f"cost: features must be [units, k] with the same k, got {list(x.shape)} for the anchor and "
                f"{list(y.shape)} for the source; compare both on the same rows"
            )
            raise SolveError(msg)
    tables = _Tables(pairs)
    if kind == "correlation":
        tables.centre()
    if unit:
        tables.normalise()
    if kind in ("euclidean", "sqeuclidean"):
        squared = _squared_distances(tables)
        return squared.sqrt_() if kind == "euclidean" else squared
    return from_products(*tables.products(), kind=kind)


def scaled(cost: torch.Tensor, how: CostScale) -> torch.Tensor:
    """``cost`` divided by its largest entry, mean or (lower) median, or as it is.

    A cost whose scale is zero is returned as it is. Raises :class:`SolveError` for an unknown ``how`` or an empty cost.
    """
    if how == "none":
        return cost
    if how not in ("max", "mean", "median"):
        msg = f"cost: unknown scale {how!r}; allowed: max, mean, median, none"
        raise SolveError(msg)
    if cost.numel() == 0:
        msg = f"cost: shape {list(cost.shape)} has no entries to scale by; compare at least one unit of each model"
        raise SolveError(msg)
    scale = getattr(cost, how)()
    return cost / scale if scale > 0 else cost


class _Tables:
    """Features of both models in blocks of columns, every unit shifted by its mean or divided by its norm if asked for."""

    def __init__(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._pairs = pairs
        self.units = [pairs[0][side].shape[0] for side in (0, 1)]
        self.features = sum(x.shape[1] for x, _ in pairs)
        self._shift = [torch.zeros(n, 1, dtype=torch.float64) for n in self.units]
        self._scale = [torch.ones(n, 1, dtype=torch.float64) for n in self.units]
        self._plain = True

    def blocks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """``[na, c]`` and ``[ns, c]`` in float64."""
        step = max(_COLUMNS, _CHUNK // max(1, sum(self.units)))
        for pair in self._pairs:
            for start in range(0, pair[0].shape[1], step):
                parts = [x.detach()[:, start : start + step].to("cpu", torch.float64) for x in pair]
                if not self._plain:
                    parts = [(x - m).mul_(s) for x, m, s in zip(parts, self._shift, self._scale, strict=True)]
                yield parts[0], parts[1]

    def products(self, *, shifted: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sums over features: ``xy[na, ns]``, ``xx[na]``, ``yy[ns]``; ``shifted``: of values minus the feature's mean."""
        cross = torch.zeros(*self.units, dtype=torch.float64)
        squares = [torch.zeros(n, dtype=torch.float64) for n in self.units]
        for x, y in self.blocks():
            if shifted and x.numel() and y.numel():  # or else features with a large common mean all count as close
                shift = x.mean(0)
                x, y = x - shift, y - shift
            squares[0] += x.square().sum(1)
            squares[1] += y.square().sum(1)
            cross.addmm_(x, y.T)
        return cross, squares[0], squares[1]

    def centre(self) -> None:
        """Features minus their mean per unit; a unit that is constant up to rounding becomes exactly zero."""
        sums = self._totals(lambda x: x)
        self._shift, self._plain = [total / max(self.features, 1) for total in sums], False
        before = self._totals(lambda x: x.square(), raw=True)
        after = self._totals(lambda x: x.square())
        self._scale = [(a > FLAT * b).double() for a, b in zip(after, before, strict=True)]

    def normalise(self) -> None:
        """Every unit divided by its norm."""
        squares = self._totals(lambda x: x.square())
        self._scale = [s / (q.sqrt() + _TINY) for s, q in zip(self._scale, squares, strict=True)]
        self._plain = False

    def _totals(self, of: Callable[[torch.Tensor], torch.Tensor], *, raw: bool = False) -> list[torch.Tensor]:
        plain, self._plain = self._plain, self._plain or raw
        totals = [torch.zeros(n, 1, dtype=torch.float64) for n in self.units]
        for parts in self.blocks():
            for total, part in zip(totals, parts, strict=True):
                total += of(part).sum(1, keepdim=True)
        self._plain = plain
        return totals


def _squared_distances(tables: _Tables) -> torch.Tensor:
    """``|x_i - y_j|^2`` by products; pairs so close that they would cancel are computed from differences."""
    cross, xx, yy = tables.products(shifted=True)
    squared = from_products(cross, xx, yy, kind="sqeuclidean")
    close = (squared <= _CLOSE * (xx[:, None] + yy)).nonzero()
    if not len(close):
        return squared
    exact = torch.zeros(len(close), dtype=torch.float64)
    for x, y in tables.blocks():
        step = max(1, _CHUNK // max(1, x.shape[1]))
        for start in range(0, len(close), step):
            i, j = close[start : start + step].unbind(1)
            exact[start : start + step] += (x[i] - y[j]).square_().sum(1)
    squared[close[:, 0], close[:, 1]] = exact
    return squared
