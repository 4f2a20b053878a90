"""Costs: against the definition written out, and where rounding would show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from otfuse.errors import SolveError
from otfuse.solve.cost import between, scaled

KINDS = ("euclidean", "sqeuclidean", "cosine", "correlation")


def features(n: int, k: int, seed: int, offset: float = 0.0) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + offset


@pytest.mark.parametrize("kind", KINDS)
@given(na=st.integers(1, 9), ns=st.integers(1, 9), k=st.integers(2, 12), seed=st.integers(0, 2**32 - 1))
def test_agrees_with_scipy(kind: str, na: int, ns: int, k: int, seed: int) -> None:
    x, y = features(na, k, seed), features(ns, k, seed ^ 1)
    assert np.allclose(between(x, y, kind=kind), cdist(x, y, kind), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_equal_features_are_at_distance_zero(dtype: torch.dtype, offset: float) -> None:
    x = features(300, 70, 0, offset).to(dtype)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    for kind in KINDS:
        cost = between(x, x[order], kind=kind)
        assert cost.dtype == torch.float64
        same = cost[order, torch.arange(300)]
        # cosines of unit vectors are known to k * 2^-53
        assert same.max() <= (0.0 if "euclidean" in kind else 1e-14)
        assert cost.argmin(1).equal(order.argsort())


def test_a_small_distance_far_from_zero_keeps_its_digits() -> None:
    x = torch.full((1, 50), 1e3, dtype=torch.float64)
    y = x.clone()
    y[0, 7] += 1e-7  # 1e3 + 1e-7 is known to 1.1e-13, so the distance to one part in a million
    assert between(torch.cat([x, -x]), y, kind="euclidean")[0, 0].item() == pytest.approx(1e-7, rel=2e-6)


@pytest.mark.parametrize("kind", ["cosine", "correlation"])
def test_a_unit_without_direction_costs_one(kind: str) -> None:
    x = features(4, 6, 0)
    x[1] = 0.0 if kind == "cosine" else 0.1  # 0.1 minus the mean of six 0.1 is not exactly zero
    cost = between(x, x, kind=kind)
    assert cost[1].eq(1).all()
    assert cost[:, 1].eq(1).all()
    assert cost[0, 0] < 1e-14


@given(seed=st.integers(0, 2**32 - 1))
def test_scaling(seed: int) -> None:
    cost = features(5, 7, seed).abs()
    assert scaled(cost, "max").max().item() == pytest.approx(1)
    assert scaled(cost, "mean").mean().item() == pytest.approx(1)
    assert scaled(cost, "median").median().item() == pytest.approx(1)
    assert scaled(cost, "none") is cost


@pytest.mark.parametrize("how", ["max", "mean", "median", "none"])
def test_scaling_never_divides_by_zero(how: str) -> None:
    zero, nearly = torch.zeros(3, 3), torch.zeros(3, 3)
    nearly[0, 0] = 1.0  # the median is zero
    assert scaled(zero, how).equal(zero)
    assert scaled(nearly, how).isfinite().all()


def test_refusals_say_what_and_what_to_do() -> None:
    x = features(2, 3, 0)
    with pytest.raises(SolveError, match=r"same k, got \[2, 3\] for the anchor and \[2, 2\] for the source; compare"):
        between(x, x[:, :2], kind="euclidean")
    with pytest.raises(SolveError, match="unknown kind 'manhattan'; allowed: euclidean"):
        between(x, x, kind="manhattan")
    with pytest.raises(SolveError, match="unknown scale 'log'; allowed: max"):
        scaled(x, "log")
    with pytest.raises(SolveError, match="no entries to scale by"):
        scaled(x[:0], "max")
