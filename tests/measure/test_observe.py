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


@given(examples=st.integers(1, 5000), most=st.integers(1, 300))
def test_batches_are_even(examples: int, most: int) -> None:
    size = even(examples, most)
    batches = -(-examples // most)
    assert 1 <= size <= most
    assert -(-examples // size) == batches, "no more batches than at the largest size"
    assert batches * size - examples < batches, "fewer than one example per batch is worked through for nothing"
