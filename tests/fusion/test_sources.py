"""Any number of sources with consistent weights, plain averages, and models that are never changed."""

from __future__ import annotations

import copy
import hashlib
import inspect

import numpy as np
import pytest
import torch

import otfuse
from align_copies import UNITS, case, fuse
from named import Named
from otfuse.errors import DataError, DeviceError, MatchError, RecipeError, UsageError
from otfuse.testing.examples import example

ROUNDING = 2e-6
EMD = {"scheme": "otfusion", "otfusion": {"solver": "emd"}}
WEIGHTS = {"scheme": "otfusion", "otfusion": {"features": "weights", "solver": "emd"}}


@pytest.fixture(scope="module")
def vit():
    return case(*example("hf_vit").build(0))


@pytest.fixture(scope="module")
def others():
    return [case(*example("hf_vit").build(seed)).side for seed in (1, 2)]


def close(one, other, within=1e-6):
    return all(torch.allclose(one[n], other[n], rtol=0, atol=within * float(other[n].abs().max())) for n in other)


@pytest.mark.parametrize("features", ["activations", "weights"])
def test_permuted_copies_give_the_model(vit, features):
    copies = [vit.permuted(UNITS, seed) for seed in (1, 2)]
    assert vit.change(fuse(vit.side, copies, vit.data, features=features, mix=(0.2, 0.3, 0.5)).weights) < ROUNDING


def test_weight_one_is_the_anchor_bit_for_bit(vit, others):
    found = fuse(vit.side, others, vit.data, mix=(1.0, 0.0, 0.0))
    assert all(t.equal(vit.side.weights[n]) for n, t in found.weights.items())


def test_the_result_is_the_weighted_sum_of_sources_carried_singly(vit, others):
    singly = [fuse(vit.side, [o], vit.data, mix=(0.0, 1.0)).weights for o in others]
    together = fuse(vit.side, others, vit.data, mix=(0.5, 0.2, 0.3)).weights
    wanted = {n: 0.5 * t + 0.2 * singly[0][n] + 0.3 * singly[1][n] for n, t in vit.side.weights.items()}
    assert close(together, wanted)
    assert not close(together, fuse(vit.side, others, vit.data, mix=(0.5, 0.3, 0.2)).weights, 1e-3)


@pytest.mark.parametrize("count", [1, 2])
def test_vanilla_is_the_plain_mean(vit, others, count):
    tables = [vit.side.weights, *(o.weights for o in others[:count])]
    found = fuse(vit.side, others[:count], None, scheme="average").weights
    wanted = {n: torch.stack([t[n].double() for t in tables]).mean(0).float() for n in tables[0]}
    assert close(found, wanted, 1e-7)


def fingerprint(model):
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + str((tensor.dtype, tensor.requires_grad)).encode())
        digest.update(tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest(), [m.training for m in model.modules()]


@pytest.mark.parametrize("name", ["hf_vit", "bert", "plain_vit"])
def test_models_given_are_not_changed_nor_shared(name):
    anchor, inputs = example(name).build(0)
    source, _ = example(name).build(1)
    anchor.train()
    before = fingerprint(anchor), fingerprint(source)
    given = inputs if isinstance(inputs, tuple) else None
    found = otfuse.fuse([anchor, source], WEIGHTS, example_inputs=given, verify=False).model
    assert (fingerprint(anchor), fingerprint(source)) == before
    assert not found.training
    mine = {p.data_ptr() for p in anchor.parameters()} | {p.data_ptr() for p in source.parameters()}
    assert not mine & {p.data_ptr() for p in found.parameters()}
    ties = [len({id(p) for p in m.parameters()}) for m in (anchor, found)]
    assert ties[0] == ties[1]


def test_the_same_object_twice_gives_itself():
    model, inputs = example("mlp").build(0)
    found = otfuse.fuse([model, model], WEIGHTS, example_inputs=inputs).model
    for (name, one), other in zip(model.state_dict().items(), found.state_dict().values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-6), name


def test_data_may_be_tensors_and_models_of_any_precision():
    anchor, inputs = example("hf_vit").build(0)
    source, _ = example("hf_vit").build(1)
    pixels = torch.randn(20, *inputs["pixel_values"].shape[1:], generator=torch.Generator().manual_seed(0))
    reference = otfuse.fuse([anchor, source], EMD, data={"pixel_values": pixels.numpy()}, verify=False).model
    again = otfuse.fuse([anchor, source], EMD, data={"pixel_values": pixels}, verify=False).model
    assert close(again.state_dict(), reference.state_dict(), 0)
    half = otfuse.fuse([copy.deepcopy(m).bfloat16() for m in (anchor, source)], WEIGHTS, verify=False).model
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    double = otfuse.fuse([copy.deepcopy(m).double() for m in (anchor, source)], WEIGHTS, verify=False).model
    assert {p.dtype for p in double.parameters()} == {torch.float64}
    single = otfuse.fuse([anchor, source], WEIGHTS, verify=False).model
    assert close({n: t.float() for n, t in double.state_dict().items()}, single.state_dict())


def test_tuple_inputs_beside_data():
    anchor, inputs = example("plain_vit").build(0)
    source, _ = example("plain_vit").build(1)
    name = next(iter(inspect.signature(anchor.forward).parameters))
    data = {name: np.random.default_rng(0).standard_normal((10, *inputs[0].shape[1:])).astype(np.float32)}
    found = otfuse.fuse([anchor, source], EMD, data=data, example_inputs=inputs, verify=False)
    assert all(p.isfinite().all() for p in found.model.parameters())


def test_running_statistics_are_carried_too():
    model = case(*example("resnet").build(0))
    found = fuse(model.side, [model.permuted(UNITS)], model.data, features="weights", mix=(0.0, 1.0)).weights
    statistics = [n for n in found if "running" in n]
    assert statistics
    assert all(torch.allclose(found[n], model.side.weights[n]) for n in statistics)


def test_refusals(vit):
    model, _ = example("hf_vit").build(0)
    with pytest.raises(UsageError, match="at least two models"):
        otfuse.fuse([model], WEIGHTS)
    with pytest.raises(RecipeError, match="2 given for 3 models"):
        otfuse.fuse([model] * 3, WEIGHTS | {"weights": [0.5, 0.5]})
    with pytest.raises(DataError, match="no data was given"):
        otfuse.fuse([model, model], EMD)
    other, _ = example("bert_classifier").build(0)
    with pytest.raises(MatchError, match="architectures differ"):
        otfuse.fuse([model, other], WEIGHTS, verify=False)


def test_a_device_without_numbers_is_refused():
    model = example("hf_vit").build(0)[0]
    with pytest.raises(DeviceError, match="meta"):
        otfuse.fuse([model, model], device="meta")


def test_the_gate_takes_a_few_examples_and_whole_tables():
    forward = lambda m, x, table: m.b(torch.tanh(m.a(x)) + table.sum(-1, keepdim=True))  # noqa: E731  # one line
    models = [Named(forward, {"a": torch.nn.Linear(7, 12), "b": torch.nn.Linear(12, 4)}).eval() for _ in range(2)]
    found = otfuse.fuse(models, "otfusion-wts", example_inputs=(torch.randn(6, 9, 7), torch.randn(9, 12)))
    assert found.report.gate["error"] < 1e-4
