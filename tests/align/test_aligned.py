"""Scheme aligned from end to end: lossless where it must be, plain where models share a start, the same in any order."""

from __future__ import annotations

import copy

import pytest
import torch

import otfuse
from align_copies import probe
from named import Named
from otfuse.align import balance
from otfuse.align.aligned import Aligner
from otfuse.core.dataset import Dataset
from otfuse.core.options import Aligned
from otfuse.errors import DataError, RecipeError
from otfuse.flow.proof.gate import change
from otfuse.fusion.sides import traced
from otfuse.io.parents import given
from otfuse.testing.examples import example
from tiny import build

FAMILIES = ("phi3_fused", "mixtral", "resnet")  # one of each kind of group; any example can be given
SEEN = ("llama_gqa",)


def _outputs(model, inputs):
    args, named = (inputs, {}) if isinstance(inputs, tuple) else ((), inputs)
    with torch.no_grad():
        result = model(*args, **named)
    return (result if isinstance(result, torch.Tensor) else result.logits,)


def _lost(name, recipe):
    """How far a model fused with another that computes the same is from it."""
    model, inputs = example(name).build(0)
    other = otfuse.equivalent(model, inputs, seed=1)
    data = probe(model, inputs, rows=24) if recipe == "aligned-acts" else None
    fused = otfuse.fuse([model, other], recipe, data=data, example_inputs=inputs, verify=False)
    wanted = _outputs(model, inputs)
    assert change(_outputs(other, inputs), wanted) < 1e-5
    assert not any(torch.equal(other.state_dict()[n], t) for n, t in model.state_dict().items() if t.ndim > 1)
    return change(_outputs(fused.model, inputs), wanted)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_and_one_that_computes_the_same_give_it_back(name):
    assert _lost(name, "aligned") < 1e-4


@pytest.mark.parametrize("name", FAMILIES[:2])
def test_so_do_models_that_are_too_large_to_be_held_in_double_precision(name, monkeypatch):
    monkeypatch.setattr(balance, "HELD", 1 << 12)  # what fits is kept, all else read anew
    assert _lost(name, "aligned") < 1e-4


@pytest.mark.parametrize("name", SEEN)
def test_so_they_do_by_what_they_compute(name):
    assert _lost(name, "aligned-acts") < 1e-4


def _pair(kind="vit", **sizes):
    return [build(kind, seed, **sizes) for seed in (0, 1)]


def test_the_carried_source_computes_what_it_did():
    anchor, source = (model.double() for model in _pair())
    fused = otfuse.fuse([anchor, source], "aligned", options={"weights": [0.0, 1.0]}, verify=False)
    pixels = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        one, other = (model(pixel_values=pixels).logits for model in (fused.model, source))
    assert (one - other).norm() < 1e-10 * other.norm()
    assert all(s.after <= s.before + 1e-9 for s in fused.report.solved if s.method == "orthogonal fixing the all-ones")
    stream = next(s.spaces[0] for s in fused.report.solved if s.name == "stream")
    found = fused.maps[stream].double()
    assert torch.allclose(found @ found.T, torch.eye(16).double(), atol=1e-6)
    assert not torch.allclose(found, torch.eye(16).double(), atol=0.1)


@pytest.mark.parametrize(("evenness", "same"), [(1.0, True), (0.0, False)])
def test_tensors_count_by_a_power_of_their_length(evenness, same):
    found = []
    for times in (1.0, 50.0):
        models = [model.double() for model in _pair()]
        for model in models:
            model.classifier.weight.data *= times
        fused = otfuse.fuse(models, "aligned", options={"aligned.evenness": evenness}, verify=False)
        stream = next(s.spaces[0] for s in fused.report.solved if s.name == "stream")
        found.append(fused.maps[stream])
    assert torch.allclose(*found, atol=1e-5) == same


def test_models_that_share_a_start_are_averaged_plainly():
    base = build("vit", 0)
    tuned = copy.deepcopy(base)
    chance = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in tuned.parameters():
            p += 0.1 * p.std(correction=0) * torch.randn(p.shape, generator=chance)
    plain, aligned = (otfuse.fuse([base, tuned], recipe, verify=False) for recipe in ("vanilla", "aligned"))
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(aligned.model.state_dict()[name], tensor), name
    assert min(s.cosine for s in aligned.report.solved) > 0.9
    assert all(torch.equal(m, torch.eye(m.shape[-1]).expand_as(m)) for m in aligned.maps.values())
    assert any("shares a start" in note for note in aligned.report.notes)


@pytest.mark.parametrize("features", ["weights", "activations"])
def test_the_order_of_the_sources_does_not_matter_and_their_spread_falls(features: str):
    models = [build("vit", seed, layers=1).double() for seed in range(3)]
    sides = [traced(given(model, "m"), None) for model in models]
    drawn = probe(models[0], sides[0].program.inputs, rows=24)
    data = Dataset({name: array.astype("float64") for name, array in drawn.items()})
    options, shares = Aligned(features=features), (0.2, 0.3, 0.5)
    one, other = (
        Aligner([sides[0], *(sides[i] for i in order)], options, tuple(shares[i] for i in (0, *order)), data)
        for order in ((1, 2), (2, 1))
    )
    assert all(later <= sooner + 1e-9 for sooner, later in zip(one.spreads, one.spreads[1:], strict=False))
    assert one.spreads[-1] < one.spreads[0]
    for number in (0, 1):
        maps, same = one.maps(number), other.maps(1 - number)
        assert all(torch.allclose(own.dense(), same[key].dense(), atol=1e-8) for key, own in maps.items())


def test_a_rotation_that_is_not_exact_is_bought_up_to_the_tolerance():
    anchor, source = _pair("gpt2", layers=1)  # its table is tied: permutations only
    exact, dear, bought = (
        otfuse.fuse([anchor, source], "aligned", options={"aligned.tolerance": at}, verify=False)
        for at in (0.0, 1e-9, 1e9)
    )
    turned = [{s.method for s in f.report.solved} & {"orthogonal fixing the all-ones"} for f in (exact, dear, bought)]
    assert list(map(len, turned)) == [0, 0, 1]
    assert all(torch.equal(t, dear.model.state_dict()[n]) for n, t in exact.model.state_dict().items())
    assert any("more than aligned.tolerance 1e-09" in note for note in dear.report.notes)
    assert any("carried sources alone lose" in note for note in bought.report.notes)
    options = {"aligned.tolerance": 1e9, "aligned.groups": "permutation"}
    asked = otfuse.fuse([anchor, source], "aligned", options=options, verify=False)
    assert "orthogonal fixing the all-ones" not in {s.method for s in asked.report.solved}, "nothing else was asked for"


def test_what_cannot_be_done_is_said():
    with pytest.raises(DataError, match=r"no data was given.*aligned"):
        otfuse.fuse(_pair(), "aligned-acts", verify=False)
    with pytest.raises(RecipeError, match=r"aligned.softness cannot be -1"):
        otfuse.fuse(_pair(), "aligned", options={"aligned.softness": -1.0}, verify=False)
    with pytest.raises(RecipeError, match=r"unknown key 'aligned.sofness'"):
        otfuse.fuse(_pair(), "aligned", options={"aligned.sofness": 1.0}, verify=False)


def _narrow(seed, least):
    """Six units of which two directions hardly are written."""
    torch.manual_seed(seed)
    parts = {"wide": torch.nn.Linear(6, 6, bias=False), "out": torch.nn.Linear(6, 2 if least is None else 6)}
    model = Named(lambda m, x: m.out(m.wide(x)), parts)
    with torch.no_grad():
        u, s, v = torch.linalg.svd(model.wide.weight)
        s[-2:] = 0 if least is None else least
        model.wide.weight.copy_(u * s @ v)
    return model


def test_a_space_that_can_only_be_rotated_is_told():
    models = [_narrow(seed, 3e-6) for seed in (0, 1)]
    notes = otfuse.fuse(models, "aligned", example_inputs=(torch.randn(4, 6),), verify=False).report.notes
    assert [note for note in notes if note.startswith("wide units: one side of it leaves directions unused")]


def test_directions_that_are_not_used_at_all_do_no_harm():
    model, inputs = _narrow(0, None), (torch.randn(4, 6),)
    other = otfuse.equivalent(model, inputs, seed=1)
    found = otfuse.fuse([model, other], "aligned", example_inputs=inputs, verify=False)
    assert change(_outputs(found.model, inputs), _outputs(model, inputs)) < 1e-4
    assert not any("leaves directions unused" in note for note in found.report.notes)
