"""Layers solved in closed form: exact where the parents agree, for every operator family, on few rows and on bad input."""

import functools
import re
import weakref
from collections import ChainMap

import numpy as np
import pytest
import torch

from calibrating import Case, firsts
from otfuse.calibrate import sweep, waiting
from otfuse.calibrate.run import calibrate
from otfuse.core.dataset import Dataset
from otfuse.core.options import Calibrated
from otfuse.errors import DataError, OutputError
from otfuse.measure.probe import Side
from otfuse.testing.examples import example
from otfuse.testing.plain import PlainVit

SHARP = Calibrated(ridge=1e-10)


@functools.cache
def case_of(name):
    return Case(name)


FAMILIES = ["mlp", "gpt2", "timm_like_vit", "torch_cross", "mixtral", "albert_shared", "convnext"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_beside_itself_stays_what_it_is(name):
    case = case_of(name)
    own = case.weights(1)
    made = calibrate(
        [case.side(own)] * 2, firsts(case, own), case.data(2), Calibrated(ridge=0.01, norms=True), [0.3, 0.7]
    )
    assert made.figures["layers"] > 0
    assert all(torch.allclose(made.weights[n], own[n], rtol=1e-8, atol=1e-9) for n in made.weights)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("timm_like_vit", "patches.weight"),
        ("gpt2", "transformer.h.1.mlp.c_fc.weight"),
        ("torch_cross", "attention.k_proj_weight"),
        ("mixtral", "model.layers.1.mlp.experts.gate_up_proj"),
        ("mixtral", "model.layers.1.mlp.experts.down_proj"),
    ],
)
def test_a_broken_layer_is_repaired(name, broken):
    case = case_of(name)
    own = case.weights(1)
    noise = torch.randn(own[broken].shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    start = firsts(case, own) | {broken: own[broken] + 0.1 * noise}
    made = calibrate([case.side(own)] * 2, start, case.data(60), SHARP, [0.5, 0.5])
    probe = case.data(1, seed=1)
    wanted, found, before = (case.outputs(w, probe) for w in (own, ChainMap(made.weights, own), ChainMap(start, own)))
    assert (before - wanted).norm() > 1e-3 * wanted.norm()
    assert (found - wanted).norm() < 1e-6 * wanted.norm()


@pytest.mark.parametrize("blend", [1.0, 0.4])
def test_the_first_layer_becomes_the_weighted_mean_from_any_start(blend):
    case = case_of("mlp")
    a, b = case.weights(1), case.weights(2)
    options = Calibrated(ridge=1e-10, blend=blend)
    made = calibrate([case.side(a), case.side(b)], firsts(case, case.weights(3)), case.data(20), options, [0.25, 0.75])
    for name in ("enter.weight", "enter.bias"):
        assert torch.allclose(made.weights[name], 0.25 * a[name] + 0.75 * b[name], atol=1e-7)


def test_values_on_disk_give_the_same_bits_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(waiting.tempfile, "tempdir", str(tmp_path))
    case = case_of("mixtral")
    parents = [case.side(case.weights(1)), case.side(case.weights(2))]
    written = []
    monkeypatch.setattr(waiting.torch, "save", lambda v, path, save=torch.save: (written.append(path), save(v, path)))
    start, data = firsts(case, parents[0].weights), case.data(3)
    made = [calibrate(parents, start, data, Calibrated(ridge=0.01), [0.5, 0.5], memory=m).weights for m in (1 << 30, 0)]
    assert written
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(made[0][n], made[1][n]) for n in made[0])


def test_a_full_disk_is_one_sentence_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(waiting.tempfile, "tempdir", str(tmp_path))
    case = case_of("mlp")
    own = case.weights(1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(waiting.torch, "save", full)
    with pytest.raises(OutputError, match=r"cannot be written \(.*No space left.*\); give fewer inputs"):
        calibrate([case.side(own)], firsts(case, own), case.data(1), SHARP, [1.0], memory=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layers", [2, 5])
def test_memory_holds_the_moments_of_one_layer_and_the_values_between_two(layers, monkeypatch):
    case = Case("plain_vit", PlainVit(layers=layers))
    own = {n: t.detach() for n, t in case.module.state_dict().items()}
    alive, waits = weakref.WeakSet(), []

    class Counted(sweep.Sums):
        def __init__(self, *given):
            assert not alive  # those of the layer before are gone
            super().__init__(*given)
            alive.add(self)

    class Weighed(sweep.Waiting):
        def put(self, key, values):
            super().put(key, values)
            waits.append(self._held)

    monkeypatch.setattr(sweep, "Sums", Counted)
    monkeypatch.setattr(sweep, "Waiting", Weighed)
    calibrate([case.side(own)], firsts(case, own), case.data(2), SHARP, [1.0])
    one = case.data(1).inputs["x0"].nbytes
    stream = 2 * 10 * 24 * 8  # examples, tokens, units, bytes
    assert max(waits) <= 2 * 2 * max(
        one, 4 * stream
    )  # models, batches: the stream, and what one block writes beside it


def test_what_fills_up_the_last_batch_does_not_count():
    two, three = Case("mlp", inputs=(torch.randn(2, 7),)), Case("mlp", inputs=(torch.randn(3, 7),))
    data, options = three.data(1), Calibrated(ridge=0.01)
    a, b, start = (two.weights(seed) for seed in (1, 2, 3))
    made = [calibrate([c.side(a), c.side(b)], start, data, options, [0.5, 0.5]).weights for c in (two, three)]
    assert all(torch.allclose(made[0][n], made[1][n], atol=1e-10) for n in start)


def test_padding_does_not_count():
    ids = example("bert").inputs()["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    case = Case("bert", inputs={"input_ids": ids, "attention_mask": mask})
    a, b, start = (case.weights(seed) for seed in (1, 2, 3))
    other = ids.clone()
    other[0, -3:] = ids[0, :3]
    made = [
        calibrate(
            [case.side(a), case.side(b)],
            firsts(case, start),
            Dataset({"input_ids": i.numpy(), "attention_mask": mask.numpy()}),
            Calibrated(ridge=0.01),
            [0.5, 0.5],
        ).weights
        for i in (ids, other)
    ]
    assert all(torch.allclose(made[0][n], made[1][n], atol=1e-9) for n in made[0])


@pytest.mark.parametrize("constant", [False, True])
def test_few_or_constant_inputs_leave_everything_finite(constant):
    case = case_of("gpt2")
    data = case.data(1)
    if constant:
        data = Dataset({"input_ids": np.full_like(data.inputs["input_ids"], 7)})
    a, b = case.weights(1), case.weights(2)
    start = {n: (t + b[n]) / 2 for n, t in firsts(case, a).items()}
    made = calibrate([case.side(a), case.side(b)], start, data, Calibrated(ridge=0.0004), [0.5, 0.5])
    assert all(t.isfinite().all() for t in made.weights.values())


def test_the_ridge_is_chosen_on_inputs_held_back():
    case = case_of("mlp")
    a, b = case.weights(1), case.weights(2)
    start = {n: (t + b[n]) / 2 for n, t in a.items()}
    made = calibrate([case.side(a), case.side(b)], start, case.data(20), Calibrated(), [0.5, 0.5])
    tried = made.figures["tried"]["ridge"]
    assert made.figures["ridge"] == min(tried, key=tried.get)
    assert any(re.match(rf"ridge {made.figures['ridge']:g} chosen by", note) for note in made.notes)


def test_a_parent_without_finite_numbers_is_named_with_the_examples():
    case = case_of("gpt2")
    a, b, data = case.weights(1), case.weights(2), case.data(4)
    ids = data.inputs["input_ids"]
    ids[ids == 9] = 8
    ids[5, 2] = 9
    for name in ("transformer.wte.weight", "lm_head.weight"):
        b[name][9] = float("nan")
    with pytest.raises(
        DataError, match=r"second gives no finite numbers at transformer\.h\.0\.\S+ on .* 4 to 5; leave"
    ):
        calibrate([case.side(a), case.side(b)], firsts(case, a), data, SHARP, [0.5, 0.5], names=["first", "second"])


def test_what_is_not_solved_is_told():
    case, other = case_of("gpt2"), Case("gpt2", inputs={"input_ids": torch.arange(20).view(2, 10) + 4})
    own = case.weights(1)
    parents = [case.side(own), Side(other.program, other.graph, other.weights(2))]
    options = Calibrated(ridge=0.01)
    made = calibrate(parents, firsts(case, own), case.data(1), options, [0.5, 0.5], names=["first", "second"])
    assert any("something beside linear layers reads it" in n and "transformer.wte.weight" in n for n in made.notes)
    assert any(n.startswith("calibrated without second") for n in made.notes)
    assert torch.allclose(made.weights["transformer.h.0.mlp.c_fc.weight"], own["transformer.h.0.mlp.c_fc.weight"])
