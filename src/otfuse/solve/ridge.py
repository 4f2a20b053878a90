"""Least squares with a ridge towards what is there, from moments alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_TINY = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Products:
    """Sums over rows of inputs ``x[in]`` and targets ``t[out]``, in float64; several problems at once along the first axis.

    ``rows[groups]``; ``xx[groups, in, in]`` and ``xt[groups, in, out]`` hold ``x x'`` and ``x t'`` of rows minus ``x0[groups, in]`` and
    ``t0[groups, out]`` (any values near the means); ``x[groups, in]`` and ``t[groups, out]`` are sums of rows minus these.
    """

    rows: Tensor
    xx: Tensor
    xt: Tensor
    x: Tensor
    t: Tensor
    x0: Tensor
    t0: Tensor

    def about(self, *, mean: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``xx`` and ``xt`` about the means, and the means; about zero, and zeros, unless ``mean``."""
        n = self.rows.clamp_min(1)[:, None]
        x, t = self.x / n, self.t / n
        xx = self.xx - n[..., None] * x[..., None] * x[:, None]
        xt = self.xt - n[..., None] * x[..., None] * t[:, None]
        x, t = x + self.x0, t + self.t0
        if mean:
            return xx, xt, x, t
        n = self.rows[:, None, None]
        xx, xt = xx + n * x[..., None] * x[:, None], xt + n * x[..., None] * t[:, None]
        return xx, xt, torch.zeros_like(x), torch.zeros_like(t)


def ridge(
    products: Products,
    weight: Tensor,
    bias: Tensor | None,
    *,
    strength: float,
    blend: float = 1.0,
    elsewhere: tuple[Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``argmin_{W, b} |X W' + b - T|^2 / |X'X| + strength * |W - weight|^2`` (X about its mean; without ``bias``, about zero).

    ``weight[groups, out, in]`` and ``bias[groups, out]`` (or None) are what is there; |X'X| is the Frobenius norm, so that
    ``strength`` has no unit. ``blend`` below one mixes into the targets what the layer ``elsewhere`` (weight and bias) gives on
    X itself: ``T' = blend T + (1 - blend) (X W_e' + b_e)``. A group without rows keeps what it has. Everything in float64.
    Source: Hoerl and Kennard 1970, shrunk to ``weight`` instead of zero.
    """
    xx, xt, x, t = products.about(mean=bias is not None)
    if blend < 1:
        assert elsewhere is not None  # the caller gives it with a blend
        away, shift = elsewhere
        xt = blend * xt + (1 - blend) * xx @ away.mT
        moved = (away @ x[..., None])[..., 0]
        t = blend * t + (1 - blend) * (moved if shift is None else moved + shift)
    size = xx.flatten(1).norm(dim=1)[:, None, None] + _TINY
    left = xx / size
    left.diagonal(dim1=1, dim2=2).add_(strength)
    right = (xt - xx @ weight.mT) / size  # what is there leaves this over
    solved = weight + torch.cholesky_solve(right, torch.linalg.cholesky(left)).mT
    solved = torch.where(products.rows[:, None, None] > 0, solved, weight)
    if bias is None:
        return solved, None
    return solved, torch.where(products.rows[:, None] > 0, t - (solved @ x[..., None])[..., 0], bias)
