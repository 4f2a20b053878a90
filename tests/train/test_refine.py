"""Maps that are learned: differentiable for every kind of group, the average itself at the identity, functions kept exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

import tiny
from named import Named
from otfuse.align.aligned import Aligner
from otfuse.core.dataset import Dataset
from otfuse.core.options import Aligned
from otfuse.core.space import Group, Space
from otfuse.core.symmetry import Kind, Slot, Symmetry
from otfuse.errors import UsageError
from otfuse.flow.proof.gate import change
from otfuse.fusion.sides import traced
from otfuse.io.parents import given
from otfuse.measure.targets import split, together
from otfuse.program.run import Runner
from otfuse.train.distil import Course
from otfuse.train.elements import Elements
from otfuse.train.lesson import Lesson
from otfuse.train.refine import Averaged, Carried, refine
from otfuse.train.worker import fill

DISCRETE = (Kind.PERMUTATION, Kind.SIGNS)  # nothing to learn, unless they are made soft


def symmetry_of(kind):
    """Two copies over the hidden units of two layers with a gain between them."""
    n = 2 if kind is Kind.TURN else 3
    places = np.arange(2 * n).reshape(2, n)
    slots = Slot("a.weight", 0, places), Slot("a.bias", 0, places, order_only=True), Slot("b.weight", 1, places, True)
    return Symmetry(Space("s", "s", "units", n, 2, Group.PERMUTATION, None, ()), kind, slots)


@pytest.mark.parametrize("kind", Kind)
def test_gradients_reach_the_elements_of_every_kind(kind):
    symmetry = symmetry_of(kind)
    width = symmetry.n * symmetry.copies
    torch.manual_seed(0)
    models = [
        Named(lambda m, x: m.b(torch.tanh(m.a(x))), {"a": nn.Linear(2, width), "b": nn.Linear(width, 2)}).double()
        for _ in range(2)
    ]
    carried = Carried(tuple(dict(m.named_parameters()) for m in models), (symmetry,), (0.3, 0.7))
    if kind in DISCRETE:
        assert not Elements([symmetry]).learns
        with pytest.raises(UsageError, match=r"no space of this model has a group beyond permutations"):
            refine(models[0], carried, None, None, None, Course())
    averaged, x = Averaged(models[0], carried, soft=kind in DISCRETE), torch.randn(3, 2, dtype=torch.float64)
    ((name, zero),) = averaged.named_parameters()
    assert zero.dtype is torch.float64
    assert torch.autograd.grad(averaged(x).square().sum(), zero)[0].abs().min() > 0 or kind.mixes
    for at in (zero.detach(), 0.2 * torch.randn_like(zero)):
        assert torch.autograd.gradcheck(
            lambda v: functional_call(averaged, {name: v}, (x,)), at.clone().requires_grad_()
        )
    assert torch.autograd.grad(averaged(x).square().sum(), zero)[0].abs().max() > 0


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in DISCRETE])
def test_what_is_averaged_goes_where_the_maps_go_and_the_models_stay(kind):
    symmetry = symmetry_of(kind)
    width = symmetry.n * symmetry.copies
    layers = [{"a": nn.Linear(2, width), "b": nn.Linear(width, 2)} for _ in range(2)]
    models = [Named(lambda m, x: m.b(torch.tanh(m.a(x))), own) for own in layers]
    carried = Carried(tuple(dict(m.named_parameters()) for m in models), (symmetry,), (0.3, 0.7))
    averaged = Averaged(models[0], carried, soft=False)
    averaged.to(torch.float64)  # a device is told in the same call
    assert {t.dtype for own in averaged.models() for t in own.values()} == {torch.float64}
    assert averaged(torch.zeros(3, 2, dtype=torch.float64)).dtype is torch.float64
    assert {p.dtype for model in models for p in model.parameters()} == {torch.float32}


def test_no_step_gives_the_average_and_some_steps_leave_what_the_source_computes():
    """Grouped heads, rotary positions, gated units: orthogonal, turns, invertible and scalings at once."""
    models = [tiny.build("llama", seed, layers=1).double() for seed in (0, 1)]
    side = traced(given(models[0], "m"), None)
    sides = [side, replace(side, weights=given(models[1], "m").weights)]
    carried = Carried(*Aligner(sides, Aligned(), (0.5, 0.5)).carried(), (0.5, 0.5))
    assert {s.kind for s in carried.symmetries} >= {Kind.ORTHOGONAL, Kind.TURN, Kind.INVERTIBLE, Kind.SCALING}
    data = Dataset({"input_ids": np.random.default_rng(0).integers(5, tiny.WORDS["vocabulary"], (12, 8))})
    lesson = Lesson(models[0], data, together(sides, (0.5, 0.5), data))

    def refined(steps):
        given = Course(steps, batch_size=8, learning_rate=0.03, device="cpu")
        return refine(models[0], carried, lesson, *split(data.size, 0.25, 0), given)

    start = refined(0).weights
    assert all(torch.equal(start[n], 0.5 * a + 0.5 * carried.models[1][n]) for n, a in carried.models[0].items())
    found, own, made = refined(4)
    assert made.best > 0
    assert made.after < made.before
    alone = Averaged(models[0], Carried(carried.models, carried.symmetries, (0.0, 1.0)), soft=False)
    fill(alone, made.weights)
    moved, run = {n: t.detach() for n, t in alone.weights().items()}, Runner(sides[1].program, double=True)
    assert change(run(moved), run(sides[1].weights)) < 1e-9
    assert all(torch.equal(own[1][n], t) for n, t in moved.items())
    assert not any(torch.allclose(moved[n], t, atol=1e-3) for n, t in carried.models[1].items() if t.ndim > 1)
    assert all(torch.equal(found[n], 0.5 * a + 0.5 * moved[n]) for n, a in carried.models[0].items())
