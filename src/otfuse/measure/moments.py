"""Streaming moments of the units of two models observed on the same rows: all that comparing units needs.

Nothing observed is stored: memory is ``O(na * ns + na + ns)`` whatever the number of rows. One pass gives
:class:`Moments`, from which every transform and cost of the published method follows; the mean absolute value of what was
transformed cannot be had from them, and takes a second pass (:class:`AbsoluteMean`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from otfuse.errors import DataError
from otfuse.measure.metric import FLAT, CostKind, from_products

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Transform = Literal["standardize", "center", "normalize", "none"]

_EXACT = 1 << 26  # up to so many products a batch is multiplied in float64: milliseconds, and exact to rounding
_FLAT_AT_MOST = 1 << 24  # values of constant units that are worth writing out
_CHUNK = 4096  # rows per float32 product: bounds its rounding and its memory


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """A transform of every unit by itself: ``(value - shift[n]) / scale[n]``."""

    shift: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Moments, in float64, of ``rows`` paired observations of ``na`` anchor and ``ns`` source units.

    ``anchor_mean[na]``, ``source_mean[ns]``; ``anchor_square[na]``, ``source_square[ns]``, ``cross[na, ns]``: sums over
    rows of products of deviations from these means.
    """

    rows: int
    anchor_mean: torch.Tensor
    source_mean: torch.Tensor
    anchor_square: torch.Tensor
    source_square: torch.Tensor
    cross: torch.Tensor

    def stacked(self, other: Moments) -> Moments:
        """Moments of both sets of rows of the same units, one below the other (Chan, Golub and LeVeque 1983).

        For the parts of one observation (batches, processes) stack first and transform after. The published ``tied``
        transforms queries and keys each by itself: ``key.transformed(t).stacked(query.transformed(t))`` and of that
        ``distance("none", cost)``.
        """
        if self.cross.shape != other.cross.shape:
            msg = (
                f"moments: {list(self.cross.shape)} and {list(other.cross.shape)} units cannot be stacked; "
                "give parts of the same units"
            )
            raise DataError(msg)
        rows = self.rows + other.rows
        part, weight = other.rows / rows, self.rows * other.rows / rows
        anchor, source = other.anchor_mean - self.anchor_mean, other.source_mean - self.source_mean
        return Moments(
            rows,
            self.anchor_mean + part * anchor,
            self.source_mean + part * source,
            self.anchor_square + other.anchor_square + weight * anchor.square(),
            self.source_square + other.source_square + weight * source.square(),
            (self.cross + other.cross).addr_(anchor, source, alpha=weight),
        )

    def taken(self, anchor: NDArray[np.int64], source: NDArray[np.int64]) -> Moments:
        """Moments of some units only, in the order given."""
        if len(anchor) == len(self.anchor_mean) and len(source) == len(self.source_mean) and _in_order(anchor, source):
            return self
        a, s = torch.from_numpy(anchor), torch.from_numpy(source)
        return Moments(
            self.rows,
            self.anchor_mean[a],
            self.source_mean[s],
            self.anchor_square[a],
            self.source_square[s],
            self.cross[a][:, s],
        )

    def anchor_affine(self, transform: Transform) -> Affine:
        """Return what ``transform`` does to the anchor's units, each by its values on all rows."""
        return _affine(transform, self.rows, self.anchor_mean, self.anchor_square)

    def transformed(self, transform: Transform) -> Moments:
        """Moments of the transformed observations.

        ``standardize``: minus mean, divided by the unbiased deviation + 1e-9; ``center``: minus mean; ``normalize``:
        divided by the norm over rows; ``none``. Raises :class:`DataError` where one row is to be standardised.
        """
        if transform == "none":
            return self
        anchor = self.anchor_affine(transform)
        source = _affine(transform, self.rows, self.source_mean, self.source_square)
        return Moments(
            self.rows,
            (self.anchor_mean - anchor.shift) / anchor.scale,
            (self.source_mean - source.shift) / source.scale,
            self.anchor_square / anchor.scale.square(),
            self.source_square / source.scale.square(),
            self.cross / anchor.scale[:, None] / source.scale,
        )

    def distance(self, transform: Transform, cost: CostKind) -> torch.Tensor:
        """``cost[na, ns]`` of the units' transformed values on all rows: what ``solve.cost.between`` gives of them.

        Where products were taken in float32, distances of nearly equal units carry an error of about 3e-4 of the
        units' own size (the square root of the rounding of the products), all others one of about 1e-7.
        """
        m = self.transformed(transform)
        if cost == "correlation":
            return from_products(m.cross, m.anchor_square, m.source_square, kind=cost)
        if cost == "cosine":
            anchor = m.anchor_square + m.rows * m.anchor_mean.square()
            source = m.source_square + m.rows * m.source_mean.square()
            return from_products(m.cross.addr(m.anchor_mean, m.source_mean, alpha=m.rows), anchor, source, kind=cost)
        # Deviations and means apart: large means would cancel in the full products.
        squared = from_products(m.cross, m.anchor_square, m.source_square, kind="sqeuclidean")
        squared += m.rows * (m.anchor_mean[:, None] - m.source_mean).square()
        return squared.sqrt_() if cost == "euclidean" else squared


class PairMoments:
    """Accumulates :class:`Moments` of ``na`` anchor and ``ns`` source units over any number of batches.

    Values are taken relative to the mean of the first batch, so that large means do not cancel; products are in the
    values' dtype (half precision as float32; float64 for small batches), their sums in float64.
    """

    def __init__(self, na: int, ns: int) -> None:
        """Nothing observed yet."""
        self.shape = (na, ns)
        self.rows = 0
        self._shifts = [torch.zeros(n, dtype=torch.float64) for n in self.shape]
        self._sums = [torch.zeros(n, dtype=torch.float64) for n in self.shape]
        self._squares = [torch.zeros(n, dtype=torch.float64) for n in self.shape]
        self._cross = torch.zeros(na, ns, dtype=torch.float64)

    def add(self, anchor: torch.Tensor, source: torch.Tensor) -> None:
        """One batch: ``anchor[rows, na]`` and ``source[rows, ns]`` of the same inputs; :class:`DataError` otherwise."""
        rows, (na, ns) = len(anchor), self.shape
        if (*anchor.shape, *source.shape) != (rows, na, rows, ns):
            msg = (
                f"moments: a batch must be [rows, {na}] and [rows, {ns}], got {list(anchor.shape)} and "
                f"{list(source.shape)}; observe both models on the same inputs"
            )
            raise DataError(msg)
        if rows == 0:
            return
        values = [_workable(v, rows * na * ns) for v in (anchor, source)]
        if self.rows == 0:  # rounded, so that it is the same number in the dtype of any batch
            self._shifts = [v.mean(0, dtype=torch.float64).float().double() for v in values]
        for start in range(0, rows, _CHUNK):
            chunk = [v[start : start + _CHUNK] for v in values]
            deviations = [v - shift.to(v.dtype) for v, shift in zip(chunk, self._shifts, strict=True)]
            for side, deviation in enumerate(deviations):
                self._sums[side] += deviation.sum(0)
                self._squares[side] += deviation.square().sum(0)
            self._cross += deviations[0].T @ deviations[1]
        self.rows += rows

    def result(self) -> Moments:
        """Moments of all rows so far; :class:`DataError` if there are none, or if they are not all finite."""
        if self.rows == 0:
            msg = "moments: no row was observed; the token filter or the data leave nothing to compare"
            raise DataError(msg)
        means = [shift + total / self.rows for shift, total in zip(self._shifts, self._sums, strict=True)]
        squares = [q - s.square() / self.rows for q, s in zip(self._squares, self._sums, strict=True)]
        for side, square in zip(("anchor", "source"), squares, strict=True):
            if not square.isfinite().all():
                unit = int((~square.isfinite()).nonzero()[0])
                msg = (
                    f"moments: unit {unit} of the {side} takes values that are not finite; "
                    "check its weights and the probe inputs"
                )
                raise DataError(msg)
        cross = self._cross.addr(*self._sums, alpha=-1 / self.rows)
        flat = [q <= FLAT * self.rows * m.square() for q, m in zip(squares, means, strict=True)]
        squares = [q.masked_fill(f, 0).clamp_(min=0) for q, f in zip(squares, flat, strict=True)]
        cross.masked_fill_(flat[0][:, None] | flat[1], 0)
        return Moments(self.rows, means[0], means[1], squares[0], squares[1], cross)


class AbsoluteMean:
    """Mean absolute value per unit of transformed observations, or of a sum of several (a second pass over the data).

    ``affines`` are the transforms of the terms, known from the first pass: ``moments.anchor_affine(transform)``.
    Accumulators over parts of the rows add up: ``value`` weighted by ``rows``.
    """

    def __init__(self, affines: Sequence[Affine]) -> None:
        """Nothing observed yet."""
        self.affines = tuple(affines)
        self.rows = 0
        self._sum = torch.zeros_like(self.affines[0].shift, dtype=torch.float64)

    def add(self, *terms: torch.Tensor) -> None:
        """One batch: each term's values ``[rows, n]``, one per affine."""
        total = torch.zeros_like(terms[0], dtype=torch.float64)
        for term, affine in zip(terms, self.affines, strict=True):
            total += (term.detach() - affine.shift) / affine.scale
        self._sum += total.abs_().sum(0)
        self.rows += len(total)

    @property
    def value(self) -> torch.Tensor:
        """``[n]`` in float64; :class:`DataError` if no row was observed."""
        if self.rows == 0:
            msg = "moments: no row was observed; the token filter or the data leave nothing to weigh"
            raise DataError(msg)
        return self._sum / self.rows


def _in_order(*units: NDArray[np.int64]) -> bool:
    return all(bool((own == np.arange(len(own))).all()) for own in units)


def _affine(transform: Transform, rows: int, mean: torch.Tensor, square: torch.Tensor) -> Affine:
    zero, one = torch.zeros_like(mean), torch.ones_like(mean)
    if transform == "none":
        return Affine(zero, one)
    if transform == "center":
        return Affine(mean, one)
    if transform == "normalize":
        return Affine(zero, (square + rows * mean.square()).sqrt_().clamp_(min=1e-12))
    if transform != "standardize":
        msg = f"moments: unknown transform {transform!r}; allowed: standardize, center, normalize, none"
        raise DataError(msg)
    if rows < 2:
        msg = "moments: one row has no deviation to standardise by; use more probe inputs or another transform"
        raise DataError(msg)
    shift, scale = mean, (square / (rows - 1)).sqrt_() + 1e-9
    flat = square == 0
    if flat.any() and rows * len(mean) <= _FLAT_AT_MOST:
        shift, scale = (
            torch.where(flat, noise, exact) for noise, exact in zip(_rounding(mean, rows), (shift, scale), strict=True)
        )
    return Affine(shift, scale)


def _rounding(mean: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 mean and deviation of constants, rounding errors included.

    The published code divides the one by the other: a unit that is constant (what the class token asks in the first
    block) is compared by the sign of its rounding error. It means nothing, but parity with the published figures needs
    it, and any other answer would be as arbitrary.
    """
    constants = mean.float().expand(rows, -1).contiguous()
    return constants.mean(0).double(), constants.std(0).double() + 1e-9


def _workable(values: torch.Tensor, products: int) -> torch.Tensor:
    values = values.detach()
    if products <= _EXACT:
        return values.double()
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
