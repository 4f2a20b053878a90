"""Sums over rows, added up batch by batch: what layers that read the same value are solved from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from otfuse.solve.ridge import Products

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class Sums:
    """Moments of inputs ``x[groups, rows, in]`` with one or more targets ``[groups, rows, out]``.

    Products of one batch are taken in its own type, about the means of the first rows seen, and added in float64: what
    large means would cancel is gone before. Memory: ``groups * in * (in + out)`` values.
    """

    def __init__(self, groups: int, reads: int, writes: Sequence[int], device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=device)

        self._rows, self._xx = zeros(), zeros(reads, reads)
        self._xt = [zeros(reads, out) for out in writes]
        self._means = [zeros(n) for n in (reads, *writes)]  # about which products are taken
        self._sums = [zeros(n) for n in (reads, *writes)]

    def add(self, x: Tensor, targets: Sequence[Tensor], groups: slice = slice(None)) -> None:
        """Rows of all groups, or of some."""
        if not x.shape[1]:
            return
        fresh, centred = (self._rows[groups] == 0)[:, None], []
        for mean, total, value in zip(self._means, self._sums, [x, *targets], strict=True):
            mean[groups] = torch.where(fresh, value.mean(1).to(mean), mean[groups])
            centred.append(value - mean[groups].to(value)[:, None])
            total[groups] += centred[-1].sum(1, dtype=torch.float64)
        self._xx[groups] += centred[0].mT @ centred[0]
        for products, value in zip(self._xt, centred[1:], strict=True):
            products[groups] += centred[0].mT @ value
        self._rows[groups] += x.shape[1]

    def products(self, target: int) -> Products:
        """What the layer with that target is solved from."""
        at = target + 1
        means, sums = self._means, self._sums
        return Products(self._rows, self._xx, self._xt[target], sums[0], sums[at], means[0], means[at])
