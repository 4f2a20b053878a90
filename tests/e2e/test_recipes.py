"""Every recipe that joins by exact maps or learns, from end to end: modules in, a finite module of the anchor's class out."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import otfuse as package
from otfuse.calibrate.run import calibrate
from otfuse.stages import works
from otfuse.testing.small import grouped_lm
from tiny import LENGTH, WORDS, build

CHANCE = np.random.default_rng(0)
DATA = {
    "vit": {"pixel_values": CHANCE.normal(size=(20, 1, 8, 8)).astype(np.float32)},
    "llama": {"input_ids": CHANCE.integers(5, WORDS["vocabulary"], (20, LENGTH))},
}
SHORT = {f"{name}.steps": 3 for name in ("refined", "distilled", "auto")}
SHORT |= {"refined.learning_rate": 0.02, "distilled.learning_rate": 1e-3, "calibrated.ridge": 0.01}
RECIPES = {  # options, and what is compared in turn
    "aligned": ({}, []),
    "aligned-acts": ({}, []),
    "calibrated": ({}, ["plain", "calibrated"]),
    "calibrated aligned": ({"calibrated.start": "aligned"}, ["aligned", "calibrated"]),
    "refined": ({}, ["aligned", "refined"]),
    "distilled": ({"distilled.start": "anchor"}, ["anchor", "distilled"]),
    "auto": ({}, ["aligned", "calibrated", "distilled"]),
}
WITHIN_AUTO = (
    "aligned",
    "calibrated aligned",
)  # `auto` begins with these two, so a second kind needs no run of its own


@pytest.fixture(scope="module")
def pairs():
    return {kind: [build(kind, seed, layers=1) for seed in (0, 1)] for kind in DATA}


@pytest.mark.parametrize(
    ("kind", "named"),
    [*(("vit", named) for named in RECIPES), *(("llama", named) for named in RECIPES if named not in WITHIN_AUTO)],
)
def test_a_recipe_gives_a_finite_model_of_the_anchors_class(pairs, kind, named):
    (options, compared), models = RECIPES[named], pairs[kind]
    made = package.fuse(models, named.split()[0], data=DATA[kind], options=SHORT | options, verify=False)
    assert type(made.model) is type(models[0])
    weights, anchor = made.model.state_dict(), models[0].state_dict()
    assert {n: (t.shape, t.dtype) for n, t in weights.items()} == {n: (t.shape, t.dtype) for n, t in anchor.items()}
    assert all(bool(t.isfinite().all()) for t in weights.values())
    assert [row.name for row in made.report.compared if row.kind == "stage"] == compared
    assert not any(torch.equal(weights[n], t) for n, t in anchor.items() if t.ndim > 1)


def test_two_stages_that_learn_keep_their_progress_apart(otfuse, models, data, tmp_path):
    line = ("fuse", models / "vit0", models / "vit1", "--data", data / "images.npz", "--recipe", "distilled", "--json")
    options = SHORT | {"distilled.start": "refined"}
    given = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
    ran = otfuse(*line, *given, "--out", tmp_path / "out")
    assert ran.status == 0, ran.err
    assert [row["name"] for row in json.loads(ran.out)["compared"][2:]] == ["aligned", "refined", "distilled"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert all(bool(t.isfinite().all()) for t in load_file(tmp_path / "out" / "model.safetensors").values())


@pytest.mark.parametrize(
    ("start", "shared"), [("plain", False), ("aligned", False), ("refined", False), ("refined", True)]
)
def test_layers_are_solved_towards_the_parents_whose_mean_they_begin_with(pairs, start, shared, monkeypatch):
    asked, models = [], list(pairs["vit"])
    if shared:
        models[1] = copy.deepcopy(models[0])
        with torch.no_grad():
            for p in models[1].parameters():
                p.mul_(1 + 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))

    def seen(parents, weights, *rest, **more):
        asked.append(([dict(side.weights) for side in parents], weights))
        return calibrate(parents, weights, *rest, **more)

    monkeypatch.setattr(works, "calibrate", seen)
    options = SHORT | {"calibrated.start": start}
    package.fuse(models, "calibrated", data=DATA["vit"], options=options, verify=False)
    ((parents, weights),) = asked
    for name, own in weights.items():
        torch.testing.assert_close(own, (parents[0][name] + parents[1][name]) / 2, atol=1e-6, rtol=0)


@pytest.mark.parametrize("groups", [2, 1])  # queries of one key are followed otherwise than of several
def test_auto_joins_unequal_widths_by_exact_maps_or_by_couplings(pairs, groups):
    models = [pairs["llama"][0], grouped_lm(**WORDS, layers=1, hidden=32, heads=8, groups=groups, mlp=24, seed=1)]
    made = package.fuse(models, data=DATA["llama"], options=SHORT, verify=False)
    told, rows = made.report.notes, [row.name for row in made.report.compared if row.kind == "stage"]
    assert any(n.startswith("not aligned by exact maps, but by recipe otfusion-wts") for n in told) == (groups == 1)
    assert any(n.startswith("nothing was calibrated: the models differ in operators or in sizes") for n in told) == (
        groups == 1
    )
    assert rows == (["aligned", "calibrated", "distilled"] if groups == 2 else ["otfusion-wts", "distilled"])
    assert all(bool(t.isfinite().all()) for t in made.model.state_dict().values())
    assert made.model.config.hidden_size == 16
