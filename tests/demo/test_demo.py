"""The demo's pieces at a size that takes seconds; what its models reach is seen by `make demo` itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from importlib.metadata import version

import pytest
import torch

from otfuse.core.dataset import Dataset
from otfuse.demo import earlier, images
from otfuse.demo import run as demo
from otfuse.errors import OutputError
from otfuse.train.options import FinetuneOptions

TINY = demo.Settings(
    train=FinetuneOptions(steps=12, batch_size=16, learning_rate=2e-3, device="cpu"),
    half=FinetuneOptions(steps=8, batch_size=16, learning_rate=2e-3, device="cpu"),
    finetune=FinetuneOptions(steps=2, batch_size=16, learning_rate=1e-3, device="cpu"),
    labels=20,
    probe=24,
    steps=2,
)
METHODS = ["vanilla", "otfusion-wts", "auto"]  # of the demo's, those that are run here


def silent(_stage, _done, _total):
    pass


@pytest.fixture(scope="module", autouse=True)
def small_models():
    with pytest.MonkeyPatch.context() as patch:
        tiny = partial(demo.image_classifier, hidden=16, layers=1, heads=2, mlp=16)
        patch.setattr(demo, "image_classifier", tiny)
        fused, kept = demo._fused, {}

        def once(method, kind, recipe, options, *rest):  # each recipe fuses once: what it makes is tested elsewhere
            key = recipe, str(options)
            kept[key] = kept.get(key) or fused(method, kind, recipe, options, *rest)
            return replace(kept[key], method=method)

        patch.setattr(demo, "_fused", once)
        patch.setattr(demo, "RECIPES", {name: demo.RECIPES[name] for name in METHODS})
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "run"


@pytest.fixture(scope="module")
def results(folder):
    return demo.run(folder, silent, TINY)


@pytest.mark.parametrize("pair", ["different digits", "same digits, other seeds"])
def test_every_method_and_control_is_scored_before_and_after_finetuning(results, pair):
    rows = [row for row in results["rows"] if row["pair"] == pair]
    one, other = demo.PAIRS[pair]
    distilled = [f"{name} distilled" for name in (one, other, "vanilla")]
    assert [row["method"] for row in rows] == [one, other, "ensemble", *METHODS, *distilled]
    kinds = ["parent"] * 2 + ["ensemble"] + ["fused"] * len(METHODS) + ["control"] * 3
    assert [row["kind"] for row in rows] == kinds
    for row in rows:
        for key in ("one_shot", "finetuned"):
            right = row[key] * images.HELD_OUT
            assert right == pytest.approx(round(right), abs=1e-9)
            assert 0 <= right <= images.HELD_OUT
            assert row[f"{key}_loss"] > 0
        assert row["one_shot_loss"] != row["finetuned_loss"]
        assert ("seconds" in row) == (row["kind"] in ("fused", "control"))


def test_the_controls_train_as_long_as_auto_each_from_its_own_start(monkeypatch):
    monkeypatch.setattr(
        demo, "_fused", lambda method, kind, recipe, options, order, _: (method, kind, recipe, options, order)
    )
    made = demo.made("pair", {"a": 1, "b": 2}, None, TINY, silent)
    assert ("auto", "fused", "auto", {"auto.steps": 2}, [1, 2]) in made
    alike = {"distilled.steps": 2}
    assert made[-3:] == [
        ("a distilled", "control", "distilled", {"distilled.start": "anchor", **alike}, [1, 2]),
        ("b distilled", "control", "distilled", {"distilled.start": "anchor", **alike}, [2, 1]),
        ("vanilla distilled", "control", "distilled", {"distilled.start": "plain", **alike}, [1, 2]),
    ]


def test_softness_is_chosen_only_where_there_is_some(results):
    soft = [(row["pair"], row["method"], row["regulariser"]) for row in results["rows"] if "regulariser" in row]
    assert [found[:2] for found in soft] == [(p, m) for p in demo.PAIRS for m in ("otfusion-wts",)]
    for pair, name, found in soft:
        assert found > 0
        assert any(f"{found:g} for {name}" in said for said in results["remarks"][pair])


def test_what_is_written_is_what_is_returned(results, folder):
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (folder / "results.md").read_text() == results["table"]
    source = results["table"].splitlines()[-1]
    assert "`otfuse demo run`" in source
    assert f"torch {version('torch')}" in source
    assert "half-a 1, half-b 2, parent-a 1, parent-b 2, fuse 0, finetune 0" in source
    assert results["machine"]["threads"] == 1
    assert {"settings", "seeds", "machine", "command", "seconds", "remarks", "digits"} < set(results)
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert sorted(p.name for p in folder.iterdir()) == [
        "figure.png", "half-a", "half-b", "parent-a", "parent-b", "results.json", "results.md",
    ]  # fmt: skip


@pytest.mark.usefixtures("results")
def test_a_whole_parent_is_reused_a_damaged_or_other_one_is_trained_again(folder):
    data, stages = images.digits(TINY.probe), []

    def note(stage, done, total):
        stages.append((done, total))

    loaded = demo.parent(folder / "parent-a", 1, data, TINY, note)
    first = [p.detach().clone() for p in loaded.parameters()]  # the file it is mapped from is about to change
    assert stages == [(1, 1)]
    weights = folder / "parent-a" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    stages.clear()
    again = demo.parent(folder / "parent-a", 1, data, TINY, note)
    assert stages == [(step, 12) for step in range(1, 13)]
    assert all(torch.equal(a, b) for a, b in zip(first, again.parameters(), strict=True))
    stages.clear()
    demo.parent(folder / "parent-a", 5, data, TINY, note)
    assert len(stages) == 12
    for own, steps in (((0, 1, 2, 3, 4), 8), ((0, 1, 2, 3, 4), 1), ((0, 1, 2, 3, 5), 8)):  # the digits count too
        stages.clear()
        demo.parent(folder / "half-a", 1, data, TINY, note, own)
        assert len(stages) == steps


def test_finished_results_are_used_again_while_nothing_they_rest_on_has_changed(results, folder, monkeypatch):
    def never(*_):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(demo.pipeline, "trace", never)
        patch.setattr(demo, "compare", never)
        (folder / "figure.png").unlink()
        assert demo.run(folder, silent, TINY) == json.loads(json.dumps(results))
        assert (folder / "figure.png").is_file()
        for change in ({"probe": 25}, {"labels": 21}, {"finetune": TINY.finetune.model_copy(update={"steps": 3})}):
            with pytest.raises(AssertionError):
                demo.run(folder, silent, replace(TINY, **change))
        patch.setattr(demo, "machine", lambda: {"torch": "other"})
        with pytest.raises(AssertionError):
            demo.run(folder, silent, TINY)
    first = earlier.fingerprint(1)
    assert (first == earlier.fingerprint(1), first == earlier.fingerprint(2)) == (True, False)


def test_what_an_older_demo_left_is_its_own_and_made_anew(results, folder, tmp_path, monkeypatch):
    old = {"command": "otfuse demo run", "rows": [{"method": "vanilla"}], "table": "| vanilla |", "fingerprint": "old"}
    place = tmp_path / "run"
    place.mkdir()
    for name in demo.PARENTS:  # it had these two parents only
        shutil.copytree(folder / name, place / name)
    (place / "results.json").write_text(json.dumps(old))
    (place / "results.md").write_text("old")
    stages = set()
    monkeypatch.setattr(demo.pipeline, "trace", lambda _: None)
    monkeypatch.setattr(demo, "made", lambda *_: [])
    monkeypatch.setattr(demo, "compare", lambda *a: [row for row in results["rows"] if row["pair"] in a[-1]])
    demo.run(place, lambda stage, _, total: stages.add((stage, total)), TINY)
    assert {("train half-a", 8), ("train half-b", 8), ("train parent-a", 1), ("train parent-b", 1)} <= stages
    assert (place / "results.md").read_text().startswith("## Parents: different digits")


def foreign_model(folder):
    (folder / "parent-b").mkdir()
    (folder / "parent-b" / "config.json").write_text("{}")
    (folder / "parent-b" / "model.safetensors").write_bytes(b"mine")
    return "parent-b"


def foreign_mark(folder):
    foreign_model(folder)
    (folder / "parent-b" / "demo.json").write_text('{"mine": 1}')
    return "parent-b"


def foreign_file(folder):
    (folder / "parent-a").write_text("mine")
    return "parent-a"


def foreign_results(folder):
    (folder / "results.json").write_text('{"rows": [1]}')
    return "results.json"


def foreign_picture(folder):
    (folder / "figure.png").write_text("mine")
    return "figure.png"


@pytest.mark.parametrize("make", [foreign_model, foreign_mark, foreign_file, foreign_results, foreign_picture])
def test_what_the_demo_did_not_make_is_never_replaced(tmp_path, make):
    name = make(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(OutputError) as caught:
        demo.run(tmp_path, silent, TINY)
    assert str(caught.value) == (
        f"demo {tmp_path}: {name} there was not made by the demo, which would replace it; give another folder, or move it away"
    )
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_folder_that_is_a_file_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError) as caught:
        demo.run(tmp_path / "taken", silent, TINY)
    assert "taken" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_ensemble_of_one_model_twice_scores_as_that_model():
    data = images.digits(24)
    held_out = Dataset(data.held_out.inputs, data.held_out.labels).take(slice(0, 50))
    model = demo.image_classifier(seed=3).eval()
    small = images.Digits(data.train, data.shifted, data.probe, held_out)
    candidates = [demo.Candidate("one", "parent", (model,)), demo.Candidate("both", "ensemble", (model, model))]
    one, both = demo.compare(candidates, small, TINY, silent)
    assert one["one_shot"] == both["one_shot"]
    assert both["finetuned_loss"] == pytest.approx(one["finetuned_loss"], rel=1e-6)
