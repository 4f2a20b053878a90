"""The demo's images: how they are split, and what a parent sees."""

from __future__ import annotations

import numpy as np
import pytest

from otfuse.core.dataset import Dataset
from otfuse.demo import images


def test_digits_are_split_without_overlap_and_shifted_by_one_pixel():
    data = images.digits(24)
    assert (data.train.size, data.held_out.size, data.probe.size) == (1797 - images.HELD_OUT, images.HELD_OUT, 24)
    assert data.probe.labels is None
    shifted, count = data.shifted.inputs["pixel_values"], data.train.size
    plain = data.train.inputs["pixel_values"]
    assert np.array_equal(shifted[4 * count : 5 * count], plain)  # the middle of nine places
    assert np.array_equal(shifted[:count, :, 1:, 1:], plain[:, :, :-1, :-1])
    assert np.array_equal(data.shifted.labels, np.tile(data.train.labels, 9))
    both = np.concatenate([plain, data.held_out.inputs["pixel_values"]]).reshape(1797, -1)
    assert plain.min() == -1
    assert plain.max() <= 1
    assert len(np.unique(both, axis=0)) == 1797  # no image twice, so none in both parts


def test_two_halves_know_all_digits_and_a_twentieth_of_the_other_half():
    one, other = images.halves((1, 2))
    assert (len(one), sorted(one + other)) == (5, list(range(10)))
    assert images.halves((3, 4)) != (one, other)
    labels = np.tile(np.arange(10), 400)
    found = np.bincount(images.seen(Dataset({"x": np.zeros(4000)}, labels), one, 1).labels)
    assert all(found[digit] == 400 for digit in one)
    assert sum(found[digit] for digit in other) == pytest.approx(2000 / images.RARE, abs=30)
