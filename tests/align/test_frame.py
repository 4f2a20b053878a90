"""Other widths in one frame: a narrower model is carried without loss, and a wider one that computes the same gives it back."""

from __future__ import annotations

import pytest
import torch

import otfuse
from align_copies import probe
from any_width import NARROW, WIDER, Small, drawn
from otfuse.flow.proof.gate import change
from tiny import build

ROUNDING = 2e-6
WORDS = {"input_ids": torch.arange(32).reshape(4, 8) % 15 + 5}


def _pair(name):
    """A narrow model, a wide one, and inputs of both."""
    chance = torch.Generator().manual_seed(0)
    if name in WIDER:
        return (
            drawn(Small(**NARROW)),
            drawn(Small(**(NARROW | WIDER[name])), 1),
            {"x": torch.randn(8, 6, 5, generator=chance)},
        )
    if name == "ViT":
        images = {"pixel_values": torch.randn(8, 1, 8, 8, generator=chance)}
        return build("vit", 0, hidden=12, heads=2), build("vit", 1, hidden=24, heads=2), images
    if name == "rotary":  # pairs keep their angles where heads keep their size
        return build("llama", 0, hidden=16), build("llama", 1, hidden=16, mlp=40), WORDS
    return build("gpt2", 0, layers=1), build("gpt2", 1, layers=1, mlp=99), WORDS


def _outputs(model, inputs):
    with torch.no_grad():
        result = model(**inputs)
    return (result if isinstance(result, torch.Tensor) else result.logits,)


def _fused(models, inputs, recipe="aligned", data=None, **options):
    return otfuse.fuse(models, recipe, data, example_inputs=inputs, options=options, verify=False)


def _embedded(wide, narrow, inputs):
    """The narrow model in the class and sizes of the wide one."""
    return _fused([wide, narrow], inputs, weights=[0.0, 1.0]).model


@pytest.mark.parametrize("name", ["all but heads", "heads and stream", "ViT", "rotary", "tied"])
def test_a_narrower_model_is_carried_without_loss_and_comes_back(name):
    narrow, wide, inputs = _pair(name)
    wanted = _outputs(narrow, inputs)
    assert change(_outputs(wide, inputs), wanted) > 0.1
    embedded = _embedded(wide, narrow, inputs)
    assert change(_outputs(embedded, inputs), wanted) < ROUNDING
    other = otfuse.equivalent(embedded, inputs, seed=1)
    back = _fused([narrow, other], inputs).model
    assert change(_outputs(back, inputs), wanted) < ROUNDING
    assert {n: t.shape for n, t in back.state_dict().items()} == {n: t.shape for n, t in narrow.state_dict().items()}


def test_three_models_of_three_widths_are_joined_and_what_differs_is_told():
    narrow, wide, inputs = _pair("all but heads")
    middle = drawn(Small(**(NARROW | {"mlp": 15})), 2)
    found = _fused([narrow, wide, middle], inputs)
    told = [note for note in found.report.notes if "has other sizes than the anchor" in note]
    assert ["stream 16 to 8" in told[0], "units 20 to 10" in told[0], "value-output 6 to 3" in told[0]] == [True] * 3
    assert "source 2 has other sizes than the anchor (units 15 to 10 units)" in told[1]
    sizes = {(s.source, s.size) for s in found.report.solved if s.name == "up units"}
    assert {size for _, size in sizes} == {(10, 20), (10, 15)}
    embedded = _embedded(wide, narrow, inputs)
    back = _fused([narrow, embedded, otfuse.equivalent(embedded, inputs, seed=2)], inputs).model
    assert change(_outputs(back, inputs), _outputs(narrow, inputs)) < ROUNDING


def test_layers_are_calibrated_to_what_a_model_of_another_width_gives():
    narrow, wide, inputs = _pair("ViT")
    data = {"pixel_values": torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(3))}
    options = {"calibrated.norms": False, "calibrated.ridge": 1e-3}  # begins from the plain average, where there is one
    same = otfuse.equivalent(_embedded(wide, narrow, inputs), inputs, seed=1)
    made = otfuse.fuse([narrow, same], "calibrated", data, options=options, verify=False).model
    assert change(_outputs(made, inputs), _outputs(narrow, inputs)) < 1e-4
    for models in ([narrow, wide], [wide, narrow]):
        found = otfuse.fuse(models, "calibrated", data, options=options, verify=False)
        figures = {row.name: row.figure for row in found.report.compared}
        assert figures["calibrated"] < figures["aligned"]
        assert not any("calibrated without" in note for note in found.report.notes)
        assert any(
            "sizes differ, so there is no plain average: begun from recipe aligned" in n for n in found.report.notes
        )


def test_refining_and_distilling_begin_from_there_and_auto_calibrates():
    narrow, wide, _ = _pair("ViT")
    data = {"pixel_values": torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(5))}
    short = {"refined.steps": 4, "refined.learning_rate": 0.01}
    refined = otfuse.fuse([wide, narrow], "refined", data, options=short, verify=False)
    assert any("refined for 4 steps" in note for note in refined.report.notes)
    auto = otfuse.fuse([narrow, wide], "auto", data, options={"auto.steps": 2}, verify=False)
    assert [row.name for row in auto.report.compared if row.kind == "stage"][:2] == ["aligned", "calibrated"]


@pytest.mark.parametrize("name", ["all but heads", "ViT"])
def test_a_wider_model_that_computes_the_same_comes_back_by_what_it_computes(name):
    narrow, wide, inputs = _pair(name)
    other = otfuse.equivalent(_embedded(wide, narrow, inputs), inputs, seed=1)
    back = _fused([narrow, other], inputs, "aligned-acts", data=probe(narrow, inputs, rows=64)).model
    assert change(_outputs(back, inputs), _outputs(narrow, inputs)) < ROUNDING


def test_three_models_of_three_widths_are_joined_by_what_they_compute():
    narrow, wide, inputs = _pair("all but heads")
    embedded = _embedded(wide, narrow, inputs)
    middle = _embedded(drawn(Small(**(NARROW | {"mlp": 15})), 2), narrow, inputs)
    models = [narrow, *(otfuse.equivalent(model, inputs, seed=2) for model in (embedded, middle))]
    back = _fused(models, inputs, "aligned-acts", data=probe(narrow, inputs, rows=64)).model
    assert change(_outputs(back, inputs), _outputs(narrow, inputs)) < ROUNDING
