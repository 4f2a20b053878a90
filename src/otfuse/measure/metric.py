"""Costs between units from inner products of their features."""

from __future__ import annotations

from typing import Literal

import torch

from otfuse.errors import SolveError

CostKind = Literal["euclidean", "sqeuclidean", "cosine", "correlation"]

# A deviation below 1e-12 of the values is rounding: the unit is constant and correlates with nothing.
FLAT = 1e-24


def from_products(dot: torch.Tensor, anchor: torch.Tensor, source: torch.Tensor, *, kind: CostKind) -> torch.Tensor:
    """Cost ``[na, ns]`` from inner products ``dot[na, ns]`` and squared norms ``anchor[na]``, ``source[ns]``.

    For ``correlation`` they must be those of features minus their mean. A unit without direction (norm zero) has cosine
    and correlation cost 1 with all. Raises :class:`SolveError` for an unknown kind.
    """
    if kind in ("euclidean", "sqeuclidean"):
        squared = torch.add(anchor[:, None], source).sub_(dot, alpha=2).clamp_(min=0)
        return squared.sqrt_() if kind == "euclidean" else squared
    if kind in ("cosine", "correlation"):
        norms = anchor.sqrt()[:, None] * source.sqrt()
        cosine = torch.where(norms > 0, dot / norms, 0.0)
        return cosine.neg_().add_(1).clamp_(min=0, max=2)
    msg = f"cost: unknown kind {kind!r}; allowed: euclidean, sqeuclidean, cosine, correlation"
    raise SolveError(msg)
