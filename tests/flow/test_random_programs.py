"""Random chains of operators: none of them gets a wrong map."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import otfuse
from otfuse.errors import RuleError
from otfuse.testing.law import EXACT, Bench, moves
from otfuse.testing.record import normal, randomise

STEPS = {  # every step maps h[3, n] to [3, m]; `new` makes a layer, the same at every call
    "linear": lambda h, new: new(lambda: nn.Linear(h.shape[1], 12))(h),
    "narrow": lambda h, new: new(lambda: nn.Linear(h.shape[1], 6))(h),
    "tanh": lambda h, new: torch.tanh(h),
    "norm": lambda h, new: new(lambda: nn.LayerNorm(h.shape[1]))(h),
    "residual": lambda h, new: h + torch.tanh(new(lambda: nn.Linear(h.shape[1], h.shape[1]))(h)),
    "gate": lambda h, new: h * torch.sigmoid(new(lambda: nn.Linear(h.shape[1], h.shape[1]))(h)),
    "heads": lambda h, new: new(lambda: nn.Linear(3, 3))(h.view(3, -1, 3)).flatten(1),
    "within": lambda h, new: functional.layer_norm(h.view(3, -1, 3), (3,)).flatten(1),
    "turn": lambda h, new: h.view(3, 2, -1).transpose(1, 2).flatten(1),
    "regroup": lambda h, new: h + torch.tanh(h.view(3, 3, -1).transpose(1, 2).flatten(1)),
    "gram": lambda h, new: (h.view(3, -1, 2) @ h.view(3, -1, 2).transpose(1, 2)).amax(1),
    "attend": lambda h, new: functional.scaled_dot_product_attention(*[h.view(3, -1, 3)] * 3).flatten(1),
    "double": lambda h, new: torch.cat([h, torch.relu(h)], 1),
    "swap": lambda h, new: torch.cat([h[:, 4:], h[:, :4]], 1),
    "halves": lambda h, new: torch.add(*h.chunk(2, 1)).repeat(1, 2),
    "repeat": lambda h, new: h + h[:, ::2].repeat_interleave(2, 1),
    "even": lambda h, new: torch.stack([h[:, ::2], torch.tanh(h[:, 1::2])], -1).flatten(1),
    "roll": lambda h, new: h + torch.tanh(h.roll(1, 1)),
    "flip": lambda h, new: h * h.view(3, -1, 2).flip(1).flatten(1),
    "sum": lambda h, new: h.view(3, -1, 2).sum(2).repeat(1, 2),
    "pad": lambda h, new: h + functional.pad(h, (2, 0))[:, : h.shape[1]],
    "write": lambda h, new: torch.slice_scatter(h, torch.tanh(h[:, 2:4]), 1, 0, 2),
    "unstack": lambda h, new: torch.cat([h.view(3, 2, -1)[:, 1], h.view(3, 2, -1)[:, 0].sigmoid()], 1),
    "ramp": lambda h, new: h * torch.arange(1, 3).repeat(h.shape[1] // 2),
    "one": lambda h, new: h + new(lambda: nn.Linear(1, 1))(h[:, :, None])[:, :, 0],
}  # fmt: skip


class Chain(nn.Module):
    """Linear layers at both ends and random steps between them; the width stays a multiple of six, at most 24."""

    def __init__(self, names):
        super().__init__()
        self.enter, self.layers, self.names = nn.Linear(7, 12), nn.ModuleList(), []
        for name in names:  # a step that would make the value too wide is left out
            width = self.hidden(torch.zeros(3, 7), making=True).shape[1]
            if width * (1 + (name == "double")) <= 24:
                self.names.append(name)
        self.leave = nn.Linear(self.hidden(torch.zeros(3, 7), making=True).shape[1], 5)

    def hidden(self, x, *, making=False):
        h, self.used = self.enter(x), 0

        def new(make):
            if making and self.used == len(self.layers):
                self.layers.append(make())
            self.used += 1
            return self.layers[self.used - 1]

        for name in self.names:
            h = STEPS[name](h, new)
            if name == "gram":  # [3, n / 2]
                h = torch.cat([h, h], 1)
        return h

    def forward(self, x):
        return self.leave(torch.tanh(self.hidden(x)))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6), st.integers(0, 2**16))
def test_no_random_program_has_a_wrong_map(names, seed):
    model, inputs = randomise(Chain(names).eval(), seed), (normal(3, 7, seed=seed),)
    try:
        graph = otfuse.trace(model, inputs)
    except RuleError as error:
        if "no flow rule" in str(error) or "does not follow it" in str(error):
            return  # refusing is no wrong map
        raise
    bench = Bench(model, inputs, seed)
    assert bench.change(moves(graph.free, seed)) < EXACT, names
    for space in graph.free:
        assert bench.change(moves([space], seed + 1)) < EXACT, (names, space.name)


@pytest.mark.parametrize("name", STEPS)
def test_every_step_of_the_random_programs_has_a_right_map(name):
    model, inputs = randomise(Chain([name]).eval(), 0), (normal(3, 7),)
    assert model.names == [name]
    assert Bench(model, inputs).change(moves(otfuse.trace(model, inputs).free)) < EXACT


class HeadSoftmax(nn.Module):
    """A softmax over two heads of six units, merged and added to what it was made of."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(7, 12), nn.Linear(12, 5)

    def forward(self, x):
        h = self.enter(x)
        return self.leave(h + h.view(3, 2, 6).softmax(1).flatten(1))


def test_a_softmax_over_heads_that_is_merged_and_added_is_traced():
    model, inputs = randomise(HeadSoftmax().eval(), 0), (normal(3, 7),)
    assert Bench(model, inputs).change(moves(otfuse.trace(model, inputs).free)) < EXACT
