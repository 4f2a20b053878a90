"""Weights are taken when they are needed; a variant is followed where it differs, and its answer is that of a run of its own."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import pytest
import torch
from torch import nn

from otfuse.flow.derive import derive
from otfuse.flow.proof.act import Moves, draw
from otfuse.flow.proof.drawn import drawn, real
from otfuse.program.export import export
from otfuse.program.lockstep import Lockstep, Variant, change, same
from otfuse.program.run import Runner
from otfuse.testing.examples import EXAMPLES


class Lazy(Mapping):
    """Copies made at every access; it knows how many were alive at once, and cannot be read as a whole."""

    def __init__(self, tensors):
        self.tensors, self.taken, self.alive, self.most = tensors, [], [], 0

    def __getitem__(self, name):
        self.alive = [held for held in self.alive if held() is not None]
        copy = self.tensors[name].clone()
        self.alive.append(weakref.ref(copy))
        self.taken.append(name)
        self.most = max(self.most, len(self.alive))
        return copy

    def __iter__(self):
        raise AssertionError("read as a whole")

    __len__ = __iter__


def deep(layers=6):
    torch.manual_seed(0)
    model = nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(5, 5), nn.Tanh())))
    return model, export(model, (torch.randn(3, 5),))


def test_a_weight_is_taken_once_when_it_is_needed_and_dropped_after_its_last_use():
    model, program = deep()
    lazy = Lazy(real(model, program))
    (found,) = Runner(program)(lazy)
    torch.testing.assert_close(found, model(*program.inputs))
    assert sorted(lazy.taken) == sorted(lazy.tensors)
    assert lazy.most <= 3, "of a layer: its matrix, its bias, one of the layer before"


def test_variants_share_the_weights_and_hold_no_model():
    model, program = deep()
    lazy = Lazy(real(model, program))
    middle = Variant(frozenset({"6.weight"}), lambda _, tensor: 2 * tensor)
    refused, later = Lockstep(program, double=True).follow(lazy, [program.inputs, (torch.randn(3, 5),)], [middle])
    assert (refused, later) == (set(), [])
    assert len(lazy.taken) == len(lazy.tensors)
    assert lazy.most <= 3
    assert set(middle.gaps) == {0, 1}


@pytest.mark.parametrize("name", ["llama_gqa", "mixtral", "hf_vit", "plain_vit", "resnet", "albert_shared", "t5"])
def test_what_a_variant_changes_is_what_a_run_of_its_own_changes(name):
    model, inputs = EXAMPLES[name].build(0)
    program = export(model, inputs)
    weights, run, variants = drawn(model, program, 0), Runner(program, double=True), []
    reference = run(weights)
    for space in derive(program).spaces:
        for members in (space.members, space.members[:1]):
            whole = all(m.positions.shape[:2] == (space.copies, space.size) for m in members)
            if whole and space.size > 1 and space.group != "rotary":
                moves = Moves([draw(type(space)("x", "", "", space.size, space.copies, space.group, None, members), 0)])
                variants.append(Variant(moves.names, moves, len(variants)))
    assert Lockstep(program, double=True).follow(weights, [program.inputs], variants) == (set(), [])
    kinds = set()
    for one in variants:
        moved = {n: one.move(n, weights[n]) for n in weights}
        gap = change(run(moved), reference)
        assert (one.gaps[0] < 1e-9) == (gap < 1e-9)
        assert one.gaps[0] == pytest.approx(gap, rel=1e-6) or gap < 1e-9
        kinds.add(gap < 1e-9)
    assert kinds == {True, False}


def test_an_input_that_the_program_does_not_take_is_told_and_harms_nothing():
    model, program = deep()
    one = Variant(frozenset({"0.weight"}), lambda _, tensor: 2 * tensor)
    given = [program.inputs, (torch.randn(3, 4),), (torch.full((3, 5), torch.nan),), (torch.randn(3, 5),)]
    refused, _ = Lockstep(program, double=True).follow(real(model, program), given, [one])
    assert refused == {1, 2}
    assert one.gaps.keys() - refused == {0, 3}


def test_of_one_trial_no_other_is_begun_while_one_is_on_its_way():
    model, program = deep()
    first, second, other = (
        Variant(frozenset({f"{at}.weight"}), lambda _, tensor: 2 * tensor, trial) for at, trial in ((0, 0), (4, 0), (4, 1))
    )  # fmt: skip
    _, later = Lockstep(program, double=True).follow(real(model, program), [program.inputs], [first, second, other])
    assert later == [second]
    assert first.gaps[0] > 0
    assert other.gaps[0] > 0


def test_a_write_into_what_a_variant_shares_stays_its_own():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.by = nn.Linear(4, 4), nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            y = self.up(x)
            y.mul_(self.by)
            return y

    model = Writes()
    program = export(model, (torch.randn(3, 4),))
    one = Variant(frozenset({"by"}), lambda _, tensor: 3 * tensor)
    Lockstep(program, double=True).follow(real(model, program), [program.inputs], [one])
    assert one.gaps[0] == pytest.approx(2.0)


def test_what_is_large_hides_nothing_of_what_is_small():
    old = torch.randn(40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    old[:, :24] = torch.finfo(torch.float32).min  # a mask
    assert same(old + 1e-15, old)
    assert same(torch.where(old < -1e9, old * (1 + 1e-15), old + 1e-15), old)
    assert not same(old + 1e-5, old)
    lone = old.clone()
    lone[3, 30] += 1e-6
    assert not same(lone, old)
    assert change(lone, old) < 1e-9, "by the norm alone it would be hidden"


def test_what_is_no_number_equals_its_like_only():
    nan, inf = torch.nan, torch.inf
    old = torch.tensor([1.0, nan, inf, -inf], dtype=torch.float64)
    assert same(old.clone(), old)
    for other in ([1.0, 2.0, inf, -inf], [nan, nan, inf, -inf], [1.0, nan, -inf, -inf], [1.0, nan, 1.0, -inf]):
        assert not same(torch.tensor(other, dtype=torch.float64), old)
    assert same((torch.tensor([1]), 3), (torch.tensor([1]), 3))
    assert not same((torch.tensor([1]), 3), (torch.tensor([2]), 3))
    assert not same(torch.zeros(2), torch.zeros(3))
