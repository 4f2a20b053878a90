"""What modules cache on plain attributes: left as it was, and never used with other weights than it was computed from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import otfuse
from otfuse.core.dataset import Dataset
from otfuse.errors import TraceError
from otfuse.evaluate.metrics import evaluate
from otfuse.program.state import copied, evaluating, slots

INPUTS = (torch.linspace(-1, 1, 24).reshape(4, 6),)
WEIGHTS = {"scheme": "otfusion", "otfusion": {"features": "weights", "solver": "emd"}}


class Caching(nn.Module):
    """A shift of the units, computed from weights once."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.up, self.down, self.shift = nn.Linear(6, 8), nn.Linear(8, 3), nn.Parameter(torch.randn(8))
        self.prepare()

    def prepare(self):
        """Nothing by default."""

    def forward(self, x):
        return self.down(torch.relu(self.up(x) + self.cached()))


class InNone(Caching):
    def prepare(self):
        self.kept = None

    def cached(self):
        if self.kept is None:
            self.kept = 2 * self.shift
        return self.kept


class InDict(Caching):
    def prepare(self):
        self.kept = {"name": "shift"}

    def cached(self):
        if len(self.kept) == 1:
            self.kept[str(self.shift.device)] = 2 * self.shift
        return self.kept[str(self.shift.device)]


class InTuple(Caching):
    def prepare(self):
        self.kept, self.length = None, 0

    def cached(self):
        if self.kept is None or self.length != 8:
            self.kept, self.length = (2 * self.shift, 1), 8
        return self.kept[0]


class InNothing(Caching):
    def cached(self):
        if not hasattr(self, "kept"):
            self.kept = 2 * self.shift
        return self.kept


class ByNumber(Caching):
    """Its cache cannot be told from a constant: without it forward does not run."""

    def prepare(self):
        self.length = 0

    def cached(self):
        if self.length != 8:
            self.kept, self.length = 2 * self.shift, 8
        return self.kept


class Constant(Caching):
    """A tensor that forward does not make."""

    def prepare(self):
        self.factor = torch.tensor(2.0)

    def cached(self):
        return self.factor * self.shift


CACHING = [InNone, InDict, InTuple, InNothing]
BEFORE = ["new", "run", "run with gradients"]


def attributes(module):
    """Everything that the module holds, tensors by identity and value."""
    return repr([(name, id(value), value) for name, value in vars(module).items()])


def made(kind, before, seed=0):
    model = kind(seed).eval()
    if before != "new":
        with torch.set_grad_enabled(before == "run with gradients"):
            model(*INPUTS)
    return model


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("kind", [*CACHING, Constant])
def test_the_gate_holds_and_the_model_is_as_it_was(kind, before):
    model = made(kind, before)
    as_it_was = attributes(model)
    check = otfuse.verify(model, INPUTS)
    assert check.error < 1e-12 < 1e-2 < check.control
    assert "shift" not in check.graph.unread
    assert attributes(model) == as_it_was
    assert model(*INPUTS).dtype is torch.float32


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("kind", CACHING)
def test_what_is_fused_computes_by_its_own_weights(kind, before):
    anchor, source = made(kind, before), made(kind, before, seed=1)
    as_they_were = attributes(anchor), attributes(source)
    fused = otfuse.fuse([anchor, source], WEIGHTS, example_inputs=INPUTS).model
    assert (attributes(anchor), attributes(source)) == as_they_were
    fresh = kind().eval()
    fresh.load_state_dict(fused.state_dict())
    assert not torch.allclose(fresh.shift, anchor.shift, atol=1e-2)
    assert torch.equal(fused(*INPUTS), fresh(*INPUTS))


@pytest.mark.parametrize("before", BEFORE[1:])
def test_a_cache_that_passes_for_a_constant_is_refused(before):
    wanted = "ByNumber cannot be traced: kept holds what an earlier forward pass computed from shift, and without it"
    with pytest.raises(TraceError, match=wanted):
        otfuse.trace(made(ByNumber, before), INPUTS)
    assert otfuse.verify(made(ByNumber, "new"), INPUTS).error < 1e-12


def test_half_precision_is_fused_with_caches_and_constants_of_its_own():
    for kind in (InDict, Constant):
        anchor, source = (kind(seed).eval().bfloat16() for seed in (0, 1))
        for model in (anchor, source):
            model(INPUTS[0].bfloat16())
        fused = otfuse.fuse([anchor, source], WEIGHTS, example_inputs=INPUTS).model
        fresh = kind().eval().bfloat16()
        fresh.load_state_dict(fused.state_dict())
        assert torch.equal(fused(INPUTS[0].bfloat16()), fresh(INPUTS[0].bfloat16()))


def test_evaluation_leaves_no_cache():
    model = InDict().eval()
    as_it_was = attributes(model)
    data = Dataset({"x": INPUTS[0].numpy()}, np.arange(4) % 3)
    assert evaluate(model, data).loss > 0
    assert attributes(model) == as_it_was


def test_everything_a_module_holds_is_put_back():
    model = nn.Sequential(InDict(), nn.Dropout()).train()
    model[0].row, model[0].names, model.table = torch.zeros(3), {"a"}, [1, {"b": torch.ones(2)}]
    row, table, mode = model[0].row, model.table, model[1].training
    with evaluating(model):
        assert not model[1].training
        model[0].row += 1
        model[0].row = model[0].new = None
        model[0].names.add("c")
        model[0].register_buffer("late", torch.ones(1))
        model.table[1].clear()
        model.table.append(2)
    assert model[0].row is row
    assert row.tolist() == [0, 0, 0]
    assert not hasattr(model[0], "new")
    assert not dict(model.named_buffers())
    assert model[0].names == {"a"}
    assert model.table is table
    assert len(table) == 2
    assert table[1]["b"].tolist() == [1, 1]
    assert model[1].training is mode


def test_a_copy_shares_nothing_and_leaves_out_what_it_should():
    model = made(InDict, "run with gradients").train()
    ((slot,),) = slots(model)
    whole, bare = copied(model), copied(model, [slot])
    assert whole.training
    assert whole.kept["cpu"].tolist() == model.kept["cpu"].tolist()
    assert whole.kept["cpu"] is not model.kept["cpu"]
    assert bare.kept == {"name": "shift"}
    assert "cpu" in model.kept
