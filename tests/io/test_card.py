"""The model card and fusion.json say what was done, and travel."""

import json
from dataclasses import replace

import yaml

from otfuse.core.alignment import SpaceReport
from otfuse.core.recipe import Recipe, read
from otfuse.core.report import Report, SourceInfo, Stage
from otfuse.io.card import fusion_json, model_card

RECIPE = read("otfusion-emd")
SPACE = SpaceReport(
    "stream", "emd", (4, 6), 0.5, 0.25, converged=True, marginal_error=0.0, steps=0, spaces=("stream 0",)
)
REPORT = Report(
    recipe=RECIPE,
    stages=(Stage("trace", 1.5, 700.0), Stage("solve", 2.0, 800.0)),
    solved=(SPACE,),
    sources=(SourceInfo("org/a", "a" * 64), SourceInfo("org/b", "b" * 64)),
    gate={"error": 1e-7, "control": 0.25},
    notes=("a note",),
    weights=(0.5, 0.5),
)


def card(**changes):
    return model_card(anchor=REPORT.sources[0], sources=REPORT.sources[1:], recipe_yaml=RECIPE.to_yaml(), **changes)


def test_front_matter_and_recipe():
    _, front, body = card(gate=REPORT.gate).split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": ["org/a", "org/b"],
        "library_name": "transformers",
        "base_model_relation": "merge",
        "tags": ["merge", "otfuse"],
    }
    recipe = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert read(recipe) == RECIPE
    assert f"| anchor | org/a | `{'a' * 64}` |\n| source | org/b | `{'b' * 64}` |" in body
    assert "| error | 1e-07 |\n| control | 0.25 |" in body
    assert "was not checked on these weights" in card()
    assert "Mixed with the weights 0.3333, 0.3333, 0.3333, anchor first." in card(weights=(1 / 3,) * 3)


def test_card_names_no_path_of_this_machine(tmp_path):
    text = model_card(
        anchor=SourceInfo(str(tmp_path / "parent a"), "0"),
        sources=[SourceInfo("./runs/deep/b|c", "1")],
        recipe_yaml="scheme: average",
    )
    assert str(tmp_path) not in text
    assert "| anchor | parent a | `0` |" in text
    assert r"| source | b\|c | `1` |" in text


def test_fusion_json_holds_everything():
    data = json.loads(fusion_json(REPORT))
    assert data["versions"].keys() == {"otfuse", "torch", "transformers", "python"}
    assert Recipe.model_validate(data["recipe"]) == RECIPE
    assert data["stages"][1] == {"name": "solve", "seconds": 2.0, "peak_mib": 800.0}
    assert data["solved"] == [
        {
            "name": "stream", "method": "emd", "size": [4, 6], "before": 0.5, "after": 0.25, "converged": True, "marginal_error": 0.0,
            "steps": 0, "spaces": ["stream 0"], "source": "", "cosine": None,
        }
    ]  # fmt: skip
    assert data["weights"] == [0.5, 0.5]
    assert data["sources"][0] == {"name": "org/a", "hash": "a" * 64}
    assert (data["gate"], data["notes"]) == ({"error": 1e-7, "control": 0.25}, ["a note"])


def test_fusion_json_is_json_even_with_nan():
    report = replace(REPORT, solved=(replace(SPACE, before=float("nan"), after=float("inf")),), gate=None)
    data = json.loads(fusion_json(report), parse_constant=lambda name: 1 / 0)
    assert (data["solved"][0]["before"], data["solved"][0]["after"], data["gate"]) == (None, None, None)
