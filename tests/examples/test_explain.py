"""What examples/explain.py claims, from what it returns."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

PATH = Path(__file__).parents[2] / "examples" / "explain.py"


@pytest.fixture(scope="module")
def explain():
    spec = importlib.util.spec_from_file_location("explain", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["explain"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["explain"]


@pytest.fixture(scope="module")
def found(explain):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return explain.main()
    finally:
        torch.set_num_threads(threads)


def test_it_is_short_and_does_without_otfuse():
    source = PATH.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 250
    assert "import otfuse" not in source
    assert "from otfuse" not in source


def test_the_spaces_are_those_of_theory(explain, found):
    stream, inner = sorted(found["spaces"], key=lambda space: -space.size)
    assert (stream.size, inner.size) == (explain.STREAM, explain.INNER)
    assert set(stream.members) == {
        ("embed.weight", 0), ("embed.bias", 0), ("first.gain", 0), ("up.weight", 1), ("down.weight", 0), ("down.bias", 0),
        ("last.gain", 0), ("head.weight", 1),
    }  # fmt: skip
    assert set(inner.members) == {("up.weight", 0), ("up.bias", 0), ("down.weight", 1)}


def test_whole_spaces_move_unseen_and_no_member_may_be_left_out(found):
    assert found["moved whole"] < 1e-12
    assert found["one member left out"] > 1e-3


def test_aligning_changes_nothing_and_averaging_then_works(found):
    losses = found["losses"]
    assert losses["source, aligned"] == pytest.approx(losses["source"], rel=1e-9)
    parents = max(losses["anchor"], losses["source"])
    assert parents < 0.05
    assert losses["plain average"] > 0.3
    assert losses["aligned average"] < 0.25 * losses["plain average"]


def test_a_copy_in_another_order_comes_back_exactly(explain):
    weights = explain.drawn(1)
    spaces, chance = explain.spaces_of(weights), np.random.default_rng(0)
    copy = weights
    for space in spaces:
        copy = explain.reordered(copy, space, chance.permutation(space.size))
    points, _ = explain.spirals(300, 5)
    assert any(not torch.equal(copy[name], weights[name]) for name in weights)
    back = explain.aligned(copy, weights, spaces, points)
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_equal_sizes_do_not_make_units_the_same(explain, monkeypatch):
    monkeypatch.setattr(explain, "INNER", explain.STREAM)
    assert len(explain.spaces_of(explain.drawn(1))) == 2
