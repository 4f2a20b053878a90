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
        sizes = [reads, *writes]
        self._ends = torch.tensor(sizes).cumsum(0).tolist()
        self._rows = torch.zeros(groups, dtype=torch.float64, device=device)
        self._products = torch.zeros(groups, reads, self._ends[-1], dtype=torch.float64, device=device)
        self._means = torch.zeros(groups, self._ends[-1], dtype=torch.float64, device=device)  # of the first rows
        self._sums = torch.zeros_like(self._means)  # about these

    def add(self, x: Tensor, targets: Sequence[Tensor], groups: slice = slice(None)) -> bool:
        """Rows of all groups, or of some; whether all of their values are finite."""
        if not x.shape[1]:
            return True
        values = torch.cat([x, *targets], -1)
        fresh = (self._rows[groups] == 0)[:, None]
        if bool(fresh.any()):
            self._means[groups] = torch.where(fresh, values.mean(1).to(self._means), self._means[groups])
        values -= self._means[groups].to(values)[:, None]
        total = values.sum(1)
        self._sums[groups] += total
        self._products[groups] += values[..., : x.shape[-1]].mT @ values
        self._rows[groups] += x.shape[1]
        return bool(torch.isfinite(total.sum()))

    def products(self, target: int) -> Products:
        """What the layer with that target is solved from."""
        x, t = slice(self._ends[0]), slice(self._ends[target], self._ends[target + 1])
        return Products(
            rows=self._rows,
            xx=self._products[..., x],
            xt=self._products[..., t],
            x=self._sums[..., x],
            t=self._sums[..., t],
            x0=self._means[..., x],
            t0=self._means[..., t],
        )
