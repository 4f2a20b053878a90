"""Couplings: mass between units, and its two readings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class Coupling:
    """Mass between the units of two models, with uniform marginals, and how it was found.

    ``mass[anchor unit, source unit]`` (float64) sums to one; rows to ``1/na`` and columns to ``1/ns``, within
    ``marginal_error`` (L1). ``objective`` is ``<mass, cost>``. Exact solvers have ``converged`` and zero ``steps``.
    """

    mass: torch.Tensor
    objective: float
    converged: bool = True
    marginal_error: float = 0.0
    steps: int = 0

    def averages(self) -> torch.Tensor:
        """Reading for what writes units: rows sum to one, an anchor unit is the average of the source's units."""
        return self.mass / self.mass.sum(1, keepdim=True)

    def shares(self) -> torch.Tensor:
        """Reading for what reads units: columns sum to one, a source unit's weight is shared out over the anchor's."""
        return self.mass / self.mass.sum(0, keepdim=True)

    def published(self) -> torch.Tensor:
        """The one reading of the published code, ``mass * ns``: too large by ``ns/na`` for what writes."""
        return self.mass * self.mass.shape[1]
