"""Descent over planted and random blocks of a transformer: exact recovery, a falling objective, maps that are held."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gauged import block, descent, planted, spaces_of_block
from otfuse.align.descent import softened
from otfuse.align.elements import Dense, Monomial
from otfuse.align.starts import outward
from otfuse.core.symmetry import Kind

STREAMS = (Kind.ORTHOGONAL_ONES, Kind.ORTHOGONAL, Kind.PERMUTATION, Kind.SIGNS)
HARD = ("heads", "units")


def apart(own, state):
    """The objective as it is written, in shares of what both models are."""
    problem = own.problem
    return sum(part.distance() for _, part in problem.tables(problem.names, state)) / own.distance(0.0)


@pytest.mark.parametrize(("noise", "seeds"), [(0.02, 100), (0.0, 20)])  # without noise: easier, and exact
def test_planted_maps_are_recovered_in_every_seed(noise, seeds):
    for seed in range(seeds):
        found = spaces_of_block(STREAMS[seed % 4], Kind.SCALING if seed % 3 else Kind.PERMUTATION)
        source = block(seed)
        anchor, elements = planted(found, source, seed)
        chance = torch.Generator().manual_seed(seed)
        noisy = {
            n: t + noise * t.std() * torch.randn(t.shape, generator=chance, dtype=t.dtype) for n, t in anchor.items()
        }
        own = descent(found, noisy, source)
        done = own.run(outward(own, own.identity()), rounds=1)
        for key in HARD:
            assert torch.equal(done.state[key].order, elements[key].order), (seed, key)
        share = apart(own, done.state)
        assert share < (1e-20 if noise == 0 else 4 * noise**2), (seed, share)


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 2**31), stream=st.sampled_from(STREAMS), units=st.sampled_from([Kind.POSITIVE, Kind.SCALING])
)
def test_no_step_leads_away_from_the_anchor(seed, stream, units):
    own = descent(spaces_of_block(stream, units), block(seed), block(seed + 1))
    for state in (own.identity(), outward(own, own.identity())):
        now = own.problem.inner(state)
        for _ in range(3):
            for root in own.roots:
                state, gain = own.step(root, state)
                then = own.problem.inner(state)
                assert then >= now - 1e-9
                assert then == pytest.approx(now + gain, abs=1e-8)  # what a step says of itself is true
                now = then


def test_a_map_that_is_held_stays_and_the_others_are_found():
    found = spaces_of_block()
    source = block(0)
    anchor, elements = planted(found, source, 3)
    held = {
        "units": Monomial(elements["units"].order),
        "stream": Dense(elements["stream"].dense, elements["stream"].dense),
    }
    own = descent(found, anchor, source, frozenset(held))
    done = own.run(own.identity() | held)
    assert done.state["units"] is held["units"]
    assert done.state["stream"] is held["stream"]
    assert apart(own, done.state) < 1e-20
    wrong = own.run(own.identity() | held | {"units": Monomial(torch.arange(10)[None])})
    assert apart(own, wrong.state) > 1e-2


def test_soft_maps_are_couplings_that_harden():
    found = spaces_of_block(Kind.PERMUTATION)
    own = descent(found, block(0), block(1))
    done = own.run(outward(own, own.identity()))
    state, _ = own.step(own.spaces.all["units"], done.state)
    soft, hard = (softened(own.problem, state, at)["units"].dense()[0] for at in (0.5, 1e-4))
    for coupling in (soft, hard):
        assert torch.allclose(coupling.sum(0), torch.ones(10).double(), atol=1e-5)
        assert torch.allclose(coupling.sum(1), torch.ones(10).double(), atol=1e-5)
    assert soft.max() < 0.9
    assert torch.allclose(hard, state["units"].dense()[0], atol=1e-3)


def test_only_permutations_move_gains_and_the_factor_that_is_not_linear():
    scaled = spaces_of_block(units=Kind.SCALING)
    anchor, elements = planted(scaled, block(0), 1)
    assert (elements["units"].factors < 0).any()
    own = descent(scaled, anchor, block(0))
    done = own.run(outward(own, own.identity()))
    assert (done.state["units"].factor < 0).any()  # signs are found, sizes are balanced away
    assert apart(own, done.state) < 1e-20
