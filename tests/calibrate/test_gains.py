"""Gains of norms and of branches: solved back exactly however they are written, in moments as long as the gain."""

import functools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from calibrating import Case, firsts
from otfuse.calibrate.layers import calibrated_layers
from otfuse.calibrate.run import BLENDS, calibrate
from otfuse.core.options import Calibrated

SHARP = Calibrated(ridge=1e-10, norms=True)
WIDTH = 6
GAINS = ("enter", "root", "zero", "written", "whole", "planes", "branch")


class Every(nn.Module):
    """A gain in every way that one is written, with a linear layer behind each."""

    def __init__(self):
        super().__init__()
        self.enter, self.planes = nn.LayerNorm(WIDTH), nn.GroupNorm(2, WIDTH)
        self.root, self.written = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.ones(WIDTH))
        self.zero, self.shift = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.whole, self.branch = nn.RMSNorm(WIDTH), nn.Parameter(torch.ones(WIDTH, 1))
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))
        self.rates, self.table = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.ones(5, WIDTH))
        self.statistics, self.head = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = x + self.layers[0](self.enter(x))
        x = x + self.layers[1](self.root * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)))
        x = x + self.layers[2](functional.normalize(x, dim=-1) * (1.0 + self.zero))
        x = x + self.layers[3]((x - x.mean(-1, keepdim=True)) * self.written + self.shift)
        x = x + self.layers[4](self.whole(x))
        y = self.planes(x.mT) + self.branch * self.layers[5](x).mT
        return self.head(self.statistics(y).mT * self.rates.exp() * self.table)


@functools.cache
def traced():
    torch.manual_seed(0)
    return Case("mlp", Every().eval(), (torch.randn(3, 5, WIDTH),))


def case_of(seed):
    torch.manual_seed(seed)
    case = traced()
    own = {n: t for n, t in case.module.state_dict().items() if n in case.program.ties}
    return case, {n: t + 0.3 * torch.randn_like(t) for n, t in own.items()}


def gains(own):
    return [n for n in own if n.split(".")[0] in (*GAINS, "shift")]


@pytest.mark.parametrize("seed", range(5))
def test_spoilt_gains_are_solved_back(seed):
    case, own = case_of(seed)
    spoilt = gains(own)
    start = own | {n: own[n] + torch.randn_like(own[n]) for n in spoilt}
    made = calibrate([case.side(own)] * 2, start, case.data(20), SHARP, [0.5, 0.5])
    assert len(spoilt) == len(GAINS) + 3  # biases
    assert all(torch.allclose(made.weights[n], own[n], atol=1e-6) for n in own)


@pytest.mark.parametrize(("name", "some"), [("timm_like_vit", "norm.bias"), ("qwen3", "self_attn.k_norm")])
def test_spoilt_norms_of_a_model_are_solved_back(name, some):
    case = Case(name)
    own = case.weights(1)
    spoilt = [n for n in own if "norm" in n]
    start = firsts(case, own) | {n: own[n] + 0.3 * torch.randn_like(own[n]) for n in spoilt}
    made = calibrate([case.side(own)] * 2, start, case.data(20), SHARP, [0.5, 0.5])
    assert any(some in n for n in spoilt)
    assert all(torch.allclose(made.weights[n], own[n], atol=1e-6) for n in spoilt)


@pytest.mark.parametrize("ridge", [1e-12, 0.5])
def test_a_first_norm_shrinks_from_the_parents_mean_towards_its_start(ridge):
    """Per channel ``(xx / |xx| + r)^-1 (xx / |xx| mean + r start)``, and ``xx / |xx|`` is one."""
    (case, a), (_, b), (_, start) = (case_of(seed) for seed in range(3))
    made = calibrate(
        [case.side(a), case.side(b)], start, case.data(20), Calibrated(ridge=ridge, norms=True), [0.25, 0.75]
    )
    mean = 0.25 * a["enter.weight"] + 0.75 * b["enter.weight"]
    assert torch.allclose(made.weights["enter.weight"], (mean + ridge * start["enter.weight"]) / (1 + ridge), atol=1e-7)


def test_moments_are_as_long_as_the_gain_and_what_is_left_is_told():
    case, own = case_of(0)
    found = calibrated_layers(case.program, case.graph, norms=True)
    shapes = {la.name: la.form.matrix(la.form.weight.meta["val"]).shape for group in found.groups for la in group}
    assert all(shapes[n] == (WIDTH, 1, 1) for n in gains(own) if "bias" not in n and n != "shift")
    assert found.left.pop("rates") == "its matrix is computed from what is stored"
    assert found.left == dict.fromkeys(
        ("table", "statistics.weight", "statistics.bias"), "no linear layer or gain that can be solved holds it"
    )
    assert set(found.solved) | {*found.left, "rates"} == set(own) - case.program.buffers


def test_without_norms_gains_stay_and_are_told():
    case, own = case_of(0)
    start = {n: t + 1 for n, t in own.items()}
    made = calibrate([case.side(own)], start, case.data(4), Calibrated(ridge=0.01), [1.0])
    assert all(torch.equal(made.weights[n], start[n]) for n in gains(own))
    assert any(
        n.startswith("not calibrated, no linear layer that can be solved holds it: ") and "zero" in n
        for n in made.notes
    )


@pytest.mark.parametrize("ridge", [0.01, "auto"])
def test_the_blend_is_chosen_on_inputs_held_back(ridge):
    (case, a), (_, b) = case_of(0), case_of(1)
    start = {n: (t + b[n]) / 2 for n, t in a.items()}
    options = Calibrated(ridge=ridge, blend="auto")
    made = calibrate([case.side(a), case.side(b)], start, case.data(20), options, [0.5, 0.5])
    tried = made.figures["tried"]["blend"]
    assert tuple(tried) == BLENDS
    assert all(math.isfinite(gap) for gap in tried.values())
    assert made.figures["blend"] == min(tried, key=tried.get)
    assert any(n.startswith(f"blend {made.figures['blend']:g} chosen by") for n in made.notes)
    assert ("ridge" in made.figures["tried"]) == (ridge == "auto")
