"""Least squares with a ridge towards what is there, from moments alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_TINY = 1e-12
_OUTPUTS = 4096  # of a layer solved at once


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

    def means(self, *, mean: bool) -> tuple[Tensor, Tensor]:
        """The means of inputs and targets; zeros unless ``mean``."""
        if not mean:
            return torch.zeros_like(self.x), torch.zeros_like(self.t)
        n = self.rows.clamp_min(1)[:, None]
        return self.x / n + self.x0, self.t / n + self.t0

    def squares(self, *, mean: bool) -> Tensor:
        """``xx`` about the means; about zero unless ``mean``."""
        return self._about(self.xx, self.x, self.x0, mean=mean)

    def crossed(self, out: slice, *, mean: bool) -> Tensor:
        """``xt`` with some of the targets about the means; about zero unless ``mean``."""
        return self._about(self.xt[..., out], self.t[:, out], self.t0[:, out], mean=mean)

    def _about(self, sums: Tensor, other: Tensor, near: Tensor, *, mean: bool) -> Tensor:
        n = self.rows.clamp_min(1)[:, None, None]
        if mean:
            return torch.baddbmm(sums, self.x[..., None] / n, other[:, None], alpha=-1)
        left = torch.stack([self.x0, self.x + self.rows[:, None] * self.x0], -1)  # (x - x0)(t - t0)' multiplied out
        return torch.baddbmm(sums, left, torch.stack([other, near], -2))


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
    X itself: ``T' = blend T + (1 - blend) (X W_e' + b_e)``. A group without rows keeps what it has. Solved in float64, some
    outputs after others, so that a wide layer is held in the type of ``weight`` alone.
    Source: Hoerl and Kennard 1970, shrunk to ``weight`` instead of zero.
    """
    mean = bias is not None
    xx, (x, t) = products.squares(mean=mean), products.means(mean=mean)
    size = xx.flatten(1).norm(dim=1)[:, None, None] + _TINY
    left = xx / size
    left.diagonal(dim1=1, dim2=2).add_(strength)
    factor, there = torch.linalg.cholesky(left), products.rows > 0
    solved, moved = torch.empty_like(weight), torch.empty_like(t)
    for at in range(0, weight.shape[1], _OUTPUTS):
        out = slice(at, at + _OUTPUTS)
        before, xt = weight[:, out].double(), products.crossed(out, mean=mean)
        if blend < 1:
            assert elsewhere is not None  # the caller gives it with a blend
            away, shift = elsewhere[0][:, out], elsewhere[1]
            xt = blend * xt + (1 - blend) * xx @ away.mT
            t[:, out] = blend * t[:, out] + (1 - blend) * (away @ x[..., None])[..., 0]
            t[:, out] += 0 if shift is None else (1 - blend) * shift[:, out]
        right = (xt - xx @ before.mT) / size  # what is there leaves this over
        found = before + torch.cholesky_solve(right, factor).mT
        found = torch.where(there[:, None, None], found, before)
        solved[:, out], moved[:, out] = found, (found @ x[..., None])[..., 0]
    return solved, None if bias is None else torch.where(there[:, None], t - moved, bias.double()).to(bias)
