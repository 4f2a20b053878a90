"""Costs between the units of two models, in float64."""

from __future__ import annotations

from typing import Literal

import torch

from otfuse.errors import SolveError
from otfuse.measure.metric import FLAT, CostKind, from_products

CostScale = Literal["max", "mean", "median", "none"]

# Below this part of |x|^2 + |y|^2 the expanded form of |x - y|^2 has fewer than 9 right digits: computed directly.
_CLOSE = 1e-6
_CHUNK = 1 << 22


def between(anchor: torch.Tensor, source: torch.Tensor, *, kind: CostKind) -> torch.Tensor:
    """Cost of every pair of units: ``[na, ns]`` in float64 from features ``anchor[na, k]`` and ``source[ns, k]``.

    ``euclidean`` and ``sqeuclidean`` are exactly zero for equal features; ``cosine`` is ``1 - cos`` and ``correlation``
    one minus Pearson's over the ``k`` features: in both a unit without direction (zero, or constant) costs 1 with all.
    Raises :class:`SolveError` for shapes that do not fit or an unknown kind.
    """
    if anchor.ndim != 2 or source.ndim != 2 or anchor.shape[1] != source.shape[1]:
        msg = (
            f"cost: features must be [units, k] with the same k, got {list(anchor.shape)} for the anchor and "
            f"{list(source.shape)} for the source; compare both on the same rows"
        )
        raise SolveError(msg)
    x, y = anchor.detach().double(), source.detach().double()
    if kind in ("euclidean", "sqeuclidean"):
        squared = _squared_distances(x, y)
        return squared.sqrt_() if kind == "euclidean" else squared
    if kind == "correlation":
        x, y = _centred(x), _centred(y)
    return from_products(x @ y.T, x.square().sum(1), y.square().sum(1), kind=kind)


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


def _squared_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``|x_i - y_j|^2`` by one matrix product; pairs so close that it would cancel are computed from differences."""
    if x.numel() and y.numel():
        shift = x.mean(0)  # or else features with a large common mean all count as close
        x, y = x - shift, y - shift
    xx, yy = x.square().sum(1), y.square().sum(1)
    squared = from_products(x @ y.T, xx, yy, kind="sqeuclidean")
    close = (squared <= _CLOSE * (xx[:, None] + yy)).nonzero()
    step = max(1, _CHUNK // max(1, x.shape[1]))
    for start in range(0, len(close), step):
        i, j = close[start : start + step].unbind(1)
        squared[i, j] = (x[i] - y[j]).square_().sum(1)
    return squared


def _centred(x: torch.Tensor) -> torch.Tensor:
    """Features minus their mean per unit; a unit that is constant up to rounding becomes exactly zero."""
    centred = x - x.mean(1, keepdim=True)
    flat = centred.square().sum(1) <= FLAT * x.square().sum(1)
    return centred.masked_fill_(flat[:, None], 0)
