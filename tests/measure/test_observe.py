"""Which rows of a value are observed when the last batch is filled up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from otfuse.core.graph import Observation
from otfuse.measure.observe import Part, RowFilter
from otfuse.measure.probe import even


@pytest.mark.parametrize(("first", "kept"), [(4, 1), (8, 2), (1, 1), (3, 3)])
def test_filling_is_left_out_and_what_is_not_made_per_example_is_whole(first: int, kept: int) -> None:
    value = torch.arange(first * 5 * 2.0).view(first, 5, 2)
    seen = Observation(value="v", dims=(2,), units=np.arange(2), read=None, tokens=None)
    rows = RowFilter("all", "skip").rows(value, seen, Part(real=1, size=4))
    assert torch.equal(rows, value[:kept].reshape(-1, 2))


def seen(read, *, units=(0, 1), dims=(2,)):
    return Observation(value="v", dims=dims, units=np.array(units), read=read, tokens=None)


FIRST, LAST = np.array([True, False, False]), np.array([False, False, True])


@pytest.mark.parametrize(
    ("observations", "wanted"),
    [
        ([seen(FIRST)], [0]),
        ([seen(FIRST, units=(0,)), seen(LAST, units=(1,))], [0, 2]),
        ([seen(FIRST, units=(0,))], None),  # the other unit may be read anywhere
        ([seen(FIRST), seen(None)], None),
        ([seen(FIRST[:, None], dims=(3,))], None),
    ],
)
def test_what_is_wanted_of_a_value_is_what_any_observation_reads(observations, wanted) -> None:
    found = RowFilter("all", "skip").wanted(observations, 2)
    assert (None if found is None else found.tolist()) == wanted
    assert RowFilter("all", "compare").wanted(observations, 2) is None


@given(examples=st.integers(1, 5000), most=st.integers(1, 300))
def test_batches_are_even(examples: int, most: int) -> None:
    size = even(examples, most)
    batches = -(-examples // most)
    assert 1 <= size <= most
    assert -(-examples // size) == batches, "no more batches than at the largest size"
    assert batches * size - examples < batches, "fewer than one example per batch is worked through for nothing"
