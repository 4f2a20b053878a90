"""`otfuse barrier` on real checkpoints: its figures are those of `eval` and `fuse`, and what has no line is refused."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest

from tiny import listing

AUTO = "scheme: otfusion\nweights: [0.3, 0.7]\notfusion: {solver: sinkhorn, regulariser: auto}\n"


def loss_of(otfuse, model, data):
    return json.loads(otfuse("eval", model, "--data", data, "--json", "-q").out)["models"][0]


def test_the_figures_are_those_of_eval_and_fuse_and_the_folder_tells_them_again(otfuse, models, data, tmp_path):
    pair, labelled, out = (models / "vit0", models / "vit1"), data / "labelled.npz", tmp_path / "new" / "out"
    (recipe := tmp_path / "auto.yaml").write_text(AUTO)
    ran = otfuse("barrier", *pair, "--data", labelled, "--recipe", recipe, "--points", "3", "--out", out, "--json")
    assert ran.status == 0, ran.err
    found = json.loads(ran.out)
    assert found == json.loads((out / "results.json").read_text())
    assert listing(tmp_path / "new") == ["out", "out/figure.svg", "out/results.json"]
    assert ET.parse(out / "figure.svg").getroot().tag.endswith("svg")
    assert found["parents"] == [loss_of(otfuse, model, labelled) for model in pair]
    plain, soft = found["lines"]
    assert [line["recipe"] for line in found["lines"]] == ["vanilla", str(recipe)]
    for i, parent in ((0, found["parents"][0]), (-1, found["parents"][1])):
        assert {"model": parent["model"], **plain["points"][i]} == parent | {"at": float(i != 0)}
    assert soft["points"][0] == plain["points"][0]
    assert soft["points"][-1] != plain["points"][-1], "a soft map costs the source something"
    for line, name in ((plain, "vanilla"), (soft, recipe)):
        equal = ("--set", "weights=[0.5, 0.5]", "--out", tmp_path / line["settings"]["scheme"])
        fused = otfuse("fuse", *pair, *equal, "--recipe", name, "--data", labelled, "-q")
        assert fused.status == 0, fused.err
        told = otfuse("report", equal[-1])
        assert (told.status, "average" in told.out, told.err) == (0, True, "")
        middle, ends = line["points"][1], [line["points"][i]["loss"] for i in (0, 2)]
        assert middle["loss"] == pytest.approx(loss_of(otfuse, equal[-1], labelled)["loss"], rel=1e-5)
        assert line["middle"] == pytest.approx(middle["loss"] - sum(ends) / 2)
        assert line["barrier"] == max(0, line["middle"])
    assert isinstance(soft["settings"]["otfusion"]["regulariser"], float), "chosen once, and used for both ends"
    assert [note for note in found["notes"] if "weights of a recipe are not used" in note]
    assert [note for note in found["notes"] if "no --probe was given" in note]
    table = otfuse("report", out)
    assert (table.status, table.err) == (0, "")
    assert f"{soft['points'][-1]['loss']:.4f}" in table.out
    assert json.loads(otfuse("report", out, "--json").out) == found
    assert "not empty" in otfuse("barrier", *pair, "--data", labelled, "--out", out).err


def test_models_of_other_sizes_have_no_plain_line_and_a_carried_one_all_the_same(otfuse, models, data, tmp_path):
    from tiny import build, save

    wide = save(build("vit", 3, mlp=40), tmp_path / "wide")
    given = ("barrier", models / "vit0", wide, "--data", data / "labelled.npz", "--points", "4", "--json")
    ran = otfuse(*given, "--recipe", "otfusion-wts", "--recipe", "aligned")
    assert ran.status == 0, ran.err
    found = json.loads(ran.out)
    assert [(ln["recipe"], ln["middle"]) for ln in found["lines"]] == [("otfusion-wts", None), ("aligned", None)]
    assert found["notes"][0].startswith("there is no line of the plain average: ")
    assert [point["at"] for point in found["lines"][0]["points"]] == [0, 1 / 3, 2 / 3, 1]
    assert set(found["lines"][0]["points"][0]) == {"at", "examples", "loss", "accuracy"}
    asked = otfuse("barrier", models / "vit0", wide, "--data", data / "labelled.npz", "--recipe", "vanilla", "-q")
    assert (asked.status, asked.err.count("\n")) == (1, 1)


@pytest.mark.parametrize("scheme", ["calibrated", "distilled", "auto", "refined"])
def test_a_scheme_that_carries_no_source_is_refused(otfuse, models, data, tmp_path, scheme):
    (tmp_path / "r.yaml").write_text(f"scheme: {scheme}\n")
    pair, out = (models / "vit0", models / "vit1"), tmp_path / "out"
    given = ("--data", data / "labelled.npz", "--recipe", tmp_path / "r.yaml", "--out", out)
    ran = otfuse("barrier", *pair, *given)
    assert (ran.status, ran.out, ran.err.count("\n"), out.exists()) == (1, "", 1, False)
    assert f"scheme {scheme} carries no source" in ran.err


def test_bad_input_is_one_sentence(otfuse, models, data, tmp_path):
    pair, labelled = (models / "vit0", models / "vit1"), ("--data", data / "labelled.npz", "-q")
    for status, words, given in (
        (2, "--points", (*labelled, "--points", "1")),
        (1, "the data have no labels", ("--data", data / "images.npz", "-q")),
        (1, "no such recipe", (*labelled, "--recipe", "otfusion-wtx")),
        (1, "which goes in", (*labelled, "--out", models / "vit0" / "out")),
        (1, "no such file or folder", (*labelled, "--probe", tmp_path / "none.npz")),
    ):
        ran = otfuse("barrier", *pair, *given, *(() if "--out" in given else ("--out", tmp_path / "out")))
        assert (ran.status, ran.out, ran.err.count("\n")) == (status, "", 1), ran.err
        assert words in ran.err
        assert listing(tmp_path) == []
