"""Spaces tried together get the answers that each gets alone; the gate holds one state of the weights."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from otfuse.core.space import Group
from otfuse.flow.derive import derive
from otfuse.flow.proof.drawn import Drawn, real
from otfuse.flow.proof.gate import verify_weights
from otfuse.flow.proof.other_inputs import other_inputs
from otfuse.flow.proof.trial import SpaceTrial
from otfuse.program.export import export
from otfuse.testing.examples import EXAMPLES


@functools.cache
def traced(name):
    model, inputs = EXAMPLES[name].build(0)
    program = export(model, inputs)
    return model, program, derive(program, holds=SpaceTrial(model, program))


def shifted(space):
    """The pairs of one member that are not those of the others: real parts with the imaginary parts of the next pair."""
    last = space.members[-1]
    pairs = last.positions.reshape(space.copies, space.size, -1, 2).copy()
    pairs[..., 1] = pairs[:, ::-1, :, 1]
    wrong = replace(last, positions=pairs.reshape(last.positions.shape))
    return replace(space, members=(*space.members[:-1], wrong))


def test_one_wrong_attention_among_right_ones_is_found_and_the_others_hold():
    model, program, graph = traced("llama_gqa")
    first, second = (s for s in graph.spaces if s.group is Group.ROTARY)
    trial = SpaceTrial(model, program)
    assert trial([[first], [second]]) == [True, True]
    assert trial([[first, second]]) == [True]
    assert trial([[shifted(first)], [second]]) == [False, True]
    assert trial([[first], [shifted(second)]]) == [True, False]
    assert trial([[first, shifted(second)], [second]]) == [False, True]
    assert trial([[shifted(first), second]]) == [False]


def test_pairs_that_nothing_tells_from_their_exchange_prove_nothing():
    class Dot(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)

        def forward(self, x):
            return self.query(x) @ self.key(x).transpose(1, 2)

    model = Dot()
    program = export(model, (torch.randn(2, 3, 6),))
    (units,) = derive(program).free
    wide = tuple(replace(m, positions=m.positions.reshape(1, 2, 2)) for m in units.members)
    pairs = replace(units, size=2, group=Group.ROTARY, members=wide)
    assert SpaceTrial(model, program)([[pairs], [units]]) == [False, True]


@pytest.mark.parametrize("name", ["llama_gqa", "mixtral", "bert", "t5", "plain_vit", "resnet"])
def test_free_spaces_hold_and_pinned_ones_that_move_something_do_not(name):
    model, program, graph = traced(name)
    pinned = [
        replace(s, group=Group.PERMUTATION, pinned=None)
        for s in graph.spaces
        if s.pinned == "output" and all(m.positions.shape[:2] == (s.copies, s.size) for m in s.members)
    ]
    answers = SpaceTrial(model, program)([[s] for s in (*graph.free, *pinned)])
    assert answers == [True] * len(graph.free) + [False] * len(pinned)


def test_nothing_to_try_costs_nothing(monkeypatch):
    model, program, _ = traced("mlp")
    monkeypatch.setattr(Drawn, "__getitem__", lambda *_: pytest.fail("a weight is drawn"))
    assert SpaceTrial(model, program)([]) == []


def test_a_weight_is_drawn_the_same_at_every_access():
    model, program, _ = traced("llama_gqa")
    tensors = real(model, program)
    one, other = (
        Drawn(tensors, {n: tuple(t.shape) for n, t in tensors.items()}, set(tensors), seed, torch.device("cpu"))
        for seed in (0, 1)
    )
    for name in tensors:
        assert one[name].dtype is torch.float64
        assert torch.equal(one[name], one[name])
        assert not torch.equal(one[name], other[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gate_reads_weights_from_a_mapping_once_and_raises_half_precision(dtype):
    model, program, graph = traced("llama_gqa")
    taken, tensors = [], {name: tensor.to(dtype) for name, tensor in real(model, program).items()}

    class Told(dict):
        def __getitem__(self, name):
            taken.append(name)
            return super().__getitem__(name)

    found = verify_weights(model, program, graph, Told(tensors))
    found.require(1e-4)
    assert len(taken) == len(tensors) + 1, "every tensor once, and that of one control again"
    raised = verify_weights(model, program, graph, {name: tensor.float() for name, tensor in tensors.items()})
    assert (found.error, found.control) == (raised.error, raised.control)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inputs_in_half_precision_are_drawn_too(dtype):
    whole, parts = next(iter(other_inputs((torch.randn(2, 3).to(dtype),), 0, new_numbers=True)))
    assert whole[0].dtype == dtype
    assert len(parts) == 1
