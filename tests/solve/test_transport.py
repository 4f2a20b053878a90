"""Couplings: oracles (POT, linear programming) and bounds derived on paper."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from otfuse.errors import SolveError
from otfuse.solve import sinkhorn as sinkhorn_module
from otfuse.solve.cost import between, scaled
from otfuse.solve.transport import solve

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))
SEEDS = st.integers(0, 2**32 - 1)
SWEEP = (10.0, 2.0, 0.5, 0.08, 0.02, 5e-3, 1e-3, 1e-4)


def costs(na: int, ns: int, seed: int, kind: str = "random") -> torch.Tensor:
    """A cost with maximum 1: random, few distinct values, two far clusters of unequal sizes, or points on a line."""
    g = torch.Generator().manual_seed(seed)
    if kind == "random":
        cost = torch.rand(na, ns, generator=g, dtype=torch.float64)
    elif kind == "ties":
        cost = torch.randint(0, 3, (na, ns), generator=g).double()
    elif kind == "line":
        cost = (torch.randn(na, 1, generator=g).double() - torch.randn(1, ns, generator=g).double()).abs()
    else:
        x, y = torch.randn(na, 4, generator=g).double(), torch.randn(ns, 4, generator=g).double()
        x[na // 2 :] += 30
        y[ns // 3 :] += 30
        cost = between(x, y, kind="euclidean")
    return scaled(cost, "max")


KINDS = ("random", "ties", "line", "clusters")


def assert_plan(mass: torch.Tensor, within: float) -> None:
    na, ns = mass.shape
    assert mass.min() >= 0
    assert (mass.sum(1) - 1 / na).abs().sum() <= within
    assert (mass.sum(0) - 1 / ns).abs().sum() <= within


@given(size=SIZES, seed=SEEDS, kind=st.sampled_from(KINDS))
@settings(max_examples=60, deadline=None)
def test_emd_reaches_the_optimum_of_the_linear_program(size: tuple[int, int], seed: int, kind: str) -> None:
    na, ns = size[0] % 6 + 1, size[1] % 6 + 1
    cost = costs(na, ns, seed, kind)
    rows, columns = np.kron(np.eye(na), np.ones(ns)), np.kron(np.ones(na), np.eye(ns))
    right = np.r_[np.full(na, 1 / na), np.full(ns, 1 / ns)]
    best = linprog(cost.numpy().ravel(), A_eq=np.r_[rows, columns], b_eq=right).fun
    found = solve(cost, solver="emd")
    assert_plan(found.mass, 1e-12)
    assert found.objective == pytest.approx(best, abs=1e-9)
    assert (found.converged, found.steps) == (True, 0)
    assert found.marginal_error < 1e-12


@given(n=st.integers(1, 20), seed=SEEDS, kind=st.sampled_from(KINDS))
@settings(max_examples=30, deadline=None)
def test_the_assignment_is_as_good_as_the_network_simplex(n: int, seed: int, kind: str) -> None:
    cost, uniform = costs(n, n, seed, kind), np.full(n, 1 / n)
    found = solve(cost, solver="emd")
    assert found.objective == pytest.approx(ot.emd2(uniform, uniform, cost.numpy()), abs=1e-12)
    assert (found.mass > 0).sum(1).eq(1).all()


def test_a_permuted_copy_is_found() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 20, generator=g)
    order = torch.randperm(64, generator=g)
    cost = scaled(between(x, x[order], kind="euclidean"), "max")
    for found in (solve(cost, solver="emd"), solve(cost, solver="sinkhorn", regulariser=1e-3)):
        assert found.averages() @ x[order].double() == pytest.approx(x.double(), abs=1e-12)
        assert found.objective == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("regulariser", SWEEP)
@given(size=SIZES, seed=SEEDS, kind=st.sampled_from(KINDS))
@settings(max_examples=25, deadline=None)
def test_sinkhorn_is_within_the_entropy_gap(regulariser: float, size: tuple[int, int], seed: int, kind: str) -> None:
    """Against a plan of least cost the soft one gains at most its extra entropy, which is at most log(min(na, ns))."""
    cost = costs(*size, seed, kind)
    exact, soft = solve(cost, solver="emd").objective, solve(cost, solver="sinkhorn", regulariser=regulariser)
    assert soft.converged
    assert soft.marginal_error <= 1e-6
    assert_plan(soft.mass, soft.marginal_error * (1 + 1e-9) + 1e-15)
    # a plan off by e in its marginals (L1) is at most e of mass away from one with exact marginals, at cost at most 1;
    # sums of at most 144 terms are known to 1e-13
    slack = soft.marginal_error + 1e-13
    assert exact - slack <= soft.objective
    # and entropies move by e * log(144 / e), at most 25 e for e above 1e-9
    assert soft.objective <= exact + regulariser * math.log(min(size)) + slack + 25 * regulariser * slack


@pytest.mark.parametrize("regulariser", SWEEP)
@pytest.mark.parametrize("size", [(24, 24), (12, 36), (36, 12), (7, 24)])
def test_sinkhorn_is_the_optimum_at_any_regulariser(regulariser: float, size: tuple[int, int]) -> None:
    """Its two conditions: uniform marginals, and cost + regulariser * log(mass) = f_i + g_j."""
    cost = costs(*size, seed=3)
    mass = solve(cost, solver="sinkhorn", regulariser=regulariser).mass
    assert_plan(mass, 1e-7)
    reduced = cost + regulariser * mass.log()
    there = mass > 1e-290  # below, logarithms of subnormal numbers say nothing
    potentials = torch.zeros(sum(size), dtype=torch.float64)
    i, j = there.nonzero().unbind(1)
    system = torch.zeros(len(i), sum(size), dtype=torch.float64)
    system[torch.arange(len(i)), i] = 1
    system[torch.arange(len(i)), size[0] + j] = 1
    potentials = torch.linalg.lstsq(system, reduced[there][:, None], driver="gelsd").solution
    assert (system @ potentials)[:, 0] == pytest.approx(reduced[there], abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(24, 24), (18, 30)])
def test_sinkhorn_falls_to_the_exact_optimum(kind: str, size: tuple[int, int]) -> None:
    cost = costs(*size, seed=1, kind=kind)
    exact = solve(cost, solver="emd").objective
    found = [solve(cost, solver="sinkhorn", regulariser=r).objective - exact for r in SWEEP]
    assert all(a >= b - 1e-6 for a, b in pairwise(found)), "softer can not be cheaper"
    assert abs(found[-1]) <= 1e-4 * math.log(size[0])


@pytest.mark.parametrize("regulariser", [2.0, 0.5, 0.08, 0.06, 0.02])
@pytest.mark.parametrize("size", [(32, 32), (32, 48), (64, 32)])
@pytest.mark.parametrize("kind", ["random", "line"])
def test_the_published_iteration_is_reproduced(regulariser: float, size: tuple[int, int], kind: str) -> None:
    """POT's kernel form on the source's rows, as published: where it converges the plans agree to 1e-7."""
    cost = costs(*size, seed=5, kind=kind)
    plan, log = ot.bregman.sinkhorn_knopp(
        np.full(size[1], 1 / size[1]), np.full(size[0], 1 / size[0]), cost.numpy().T, regulariser, warn=False, log=True
    )
    assert log["err"][-1] < 1e-9, "not converged: no oracle"
    found = solve(cost, solver="sinkhorn", regulariser=regulariser)
    assert found.mass == pytest.approx(plan.T, abs=1e-8)
    if log["niter"] < 300:  # the same steps, not only the same limit
        assert found.steps == log["niter"] + 1
        assert found.mass == pytest.approx(plan.T, rel=1e-9)


@given(seed=SEEDS, scale=st.sampled_from([1e-3, 1.0, 30.0, 3e4]), kind=st.sampled_from(KINDS))
@settings(max_examples=40, deadline=None)
def test_cost_and_regulariser_scale_together_and_constants_do_not_matter(seed: int, scale: float, kind: str) -> None:
    cost = costs(9, 7, seed, kind)
    for regulariser in (0.5, 2e-3):
        one = solve(cost, solver="sinkhorn", regulariser=regulariser)
        other = solve(cost * scale + 5 * scale, solver="sinkhorn", regulariser=regulariser * scale)
        # exponents of size 1 / regulariser are known to 1e-15 of that; marginals off by 1e-7 move the plan by more
        assert other.mass == pytest.approx(one.mass, abs=1e-5)


def test_unscaled_costs_at_small_regularisers_are_right_or_say_so() -> None:
    cost = costs(16, 24, 0) * 26_000
    exact = solve(cost, solver="emd").objective
    for regulariser in (10.0, 0.08, 1e-3, 1e-4, 1e-9):
        found = solve(cost, solver="sinkhorn", regulariser=regulariser)
        assert found.mass.isfinite().all()
        assert found.converged == (found.marginal_error <= sinkhorn_module.CONVERGED)
        if regulariser >= 1e-4:
            assert found.converged
            assert found.objective <= exact + regulariser * math.log(16) + found.marginal_error * 26_000


def test_a_solver_stopped_early_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinkhorn_module, "_NEWTON_STEPS", 1)
    found = solve(costs(12, 36, 0), solver="sinkhorn", regulariser=5e-3)
    assert not found.converged
    assert found.marginal_error > sinkhorn_module.CONVERGED
    error = (found.mass.sum(1) - 1 / 12).abs().sum() + (found.mass.sum(0) - 1 / 36).abs().sum()
    assert found.marginal_error == pytest.approx(error.item(), rel=1e-12)


def test_degenerate_problems() -> None:
    for regulariser in SWEEP:
        one = solve(torch.tensor([[4.0]]), solver="sinkhorn", regulariser=regulariser)
        assert one.mass.item() == pytest.approx(1)
        flat = solve(torch.full((3, 5), 7.0), solver="sinkhorn", regulariser=regulariser)
        assert flat.mass == pytest.approx(torch.full((3, 5), 1 / 15, dtype=torch.float64))
        assert flat.objective == pytest.approx(7)


def test_threads_change_rounding_only() -> None:
    cost, before = costs(96, 96, 2), torch.get_num_threads()
    try:
        for regulariser in (0.02, 1e-3):
            plans = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                plans.append(solve(cost, solver="sinkhorn", regulariser=regulariser).mass)
            assert plans[0] == pytest.approx(plans[1], abs=1e-8)
    finally:
        torch.set_num_threads(before)


def test_the_problem_given_is_not_changed() -> None:
    cost = costs(8, 8, 0)
    kept = cost.clone()
    for solver, regulariser in (("emd", 0.0), ("sinkhorn", 0.1), ("sinkhorn", 1e-4)):
        solve(cost, solver=solver, regulariser=regulariser)
        assert cost.equal(kept)


def test_square_problems_do_not_import_pot() -> None:
    """Importing it takes over a second and a hundred megabytes."""
    code = (
        "import sys, torch; from otfuse.solve.transport import solve\n"
        "c = torch.rand(4, 4); solve(c, solver='emd'); solve(c[:3], solver='sinkhorn', regulariser=1e-4)\n"
        "assert 'ot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("cost", "solver", "regulariser", "says"),
    [
        (torch.ones(3), "emd", 1.0, r"must be a matrix .* got shape \[3\]; compare"),
        (torch.ones(0, 3), "sinkhorn", 1.0, r"got shape \[0, 3\]; compare at least one unit"),
        (torch.tensor([[0.0, 1], [math.nan, 0]]), "emd", 1.0, "anchor unit 1 and source unit 0 is nan; check"),
        (torch.tensor([[0.0, math.inf]]), "sinkhorn", 1.0, "anchor unit 0 and source unit 1 is inf; check"),
        (torch.ones(2, 2), "simplex", 1.0, "unknown solver 'simplex'; allowed: emd, sinkhorn"),
        (torch.ones(2, 2), "sinkhorn", 0.0, "above zero, got 0.0; use the solver emd"),
        (torch.ones(2, 2), "sinkhorn", math.nan, "above zero, got nan; use the solver emd"),
    ],
)
def test_refusals_say_what_where_and_what_to_do(cost: torch.Tensor, solver: str, regulariser: float, says: str) -> None:
    with pytest.raises(SolveError, match=says):
        solve(cost, solver=solver, regulariser=regulariser)
