"""Exact couplings with uniform marginals."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from otfuse.core.coupling import Coupling

_PIVOTS = 10_000_000  # POT's default of 100,000 is too few from about a thousand units on


def emd(cost: torch.Tensor) -> Coupling:
    """Exact coupling: the smallest ``<mass, cost>`` over plans with uniform marginals, ``cost[na, ns]`` finite float64.

    Square: an assignment (Crouse 2016, SciPy), every unit going to one unit whole. Otherwise the network simplex of
    Bonneel 2011 (POT), which is imported only then: it takes over a second and a hundred megabytes.
    """
    na, ns = cost.shape
    if na == ns:
        from scipy.optimize import (
            linear_sum_assignment,
        )  # where it is needed: it takes as long as tracing a small model

        rows, columns = linear_sum_assignment(cost.numpy())
        mass = torch.zeros_like(cost)
        mass[torch.from_numpy(rows), torch.from_numpy(columns)] = 1 / na
        return coupling(mass, cost)
    import ot

    a, b = np.full(na, 1 / na), np.full(ns, 1 / ns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the solver warns of is read from its code and reported
        plan, log = ot.emd(a, b, cost.numpy(), numItermax=_PIVOTS, log=True)
    return coupling(torch.from_numpy(plan), cost, converged=log["result_code"] == 1)


def coupling(mass: torch.Tensor, cost: torch.Tensor, *, converged: bool = True, steps: int = 0) -> Coupling:
    """Return the :class:`Coupling` of ``mass[na, ns]``, with its objective and marginal error (L1, both sides)."""
    na, ns = mass.shape
    error = (mass.sum(1) - 1 / na).abs().sum() + (mass.sum(0) - 1 / ns).abs().sum()
    return Coupling(mass, (mass * cost).sum().item(), converged, error.item(), steps)
