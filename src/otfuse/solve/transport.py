"""One door to the solvers: checks the problem, then picks who solves it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

from otfuse.errors import SolveError
from otfuse.solve.assignment import emd
from otfuse.solve.sinkhorn import sinkhorn

if TYPE_CHECKING:
    from otfuse.core.coupling import Coupling

Solver = Literal["emd", "sinkhorn"]


def solve(cost: torch.Tensor, *, solver: Solver, regulariser: float = 0.0) -> Coupling:
    """Coupling of anchor units with source units under uniform marginals, from ``cost[na, ns]``.

    ``regulariser`` is in units of ``cost`` and read by ``sinkhorn`` only. A cost may be of any real dtype and is solved
    in float64 on the processor. Raises :class:`SolveError` for a cost that is not a finite, non-empty matrix, a
    regulariser that is not a number above zero, or an unknown solver.
    """
    if cost.ndim != 2 or cost.numel() == 0:
        msg = (
            f"transport: the cost must be a matrix [anchor units, source units], got shape {list(cost.shape)}; "
            "compare at least one unit of each model"
        )
        raise SolveError(msg)
    work = cost.detach().to("cpu", torch.float64)
    if not (finite := work.isfinite()).all():
        i, j = (~finite).nonzero()[0].tolist()
        msg = (
            f"transport: the cost of anchor unit {i} and source unit {j} is {work[i, j].item()}; "
            "check weights and inputs for values that are not finite"
        )
        raise SolveError(msg)
    if solver == "emd":
        return emd(work)
    if solver != "sinkhorn":
        msg = f"transport: unknown solver {solver!r}; allowed: emd, sinkhorn"
        raise SolveError(msg)
    if not (regulariser > 0 and math.isfinite(regulariser)):
        msg = (
            f"transport: the regulariser must be a finite number above zero, got {regulariser}; "
            "use the solver emd for an exact coupling"
        )
        raise SolveError(msg)
    return sinkhorn(work, regulariser)
