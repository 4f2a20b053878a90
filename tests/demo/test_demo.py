"""The demo's pieces at a size that takes seconds; that its parents reach 97 % is seen by `make demo` itself."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from otfuse.core.dataset import Dataset
from otfuse.demo import earlier
from otfuse.demo import run as demo
from otfuse.errors import OutputError
from otfuse.train.options import FinetuneOptions

TINY = demo.Settings(
    train=FinetuneOptions(steps=40, batch_size=16, learning_rate=2e-3, device="cpu"),
    finetune=FinetuneOptions(steps=2, batch_size=16, learning_rate=1e-3, device="cpu"),
    probe=24,
)


def silent(_stage, _done, _total):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "run"


@pytest.fixture(scope="module")
def results(folder):
    return demo.run(folder, silent, TINY)


def test_every_method_is_scored_before_and_after_finetuning(results):
    assert [row["method"] for row in results["rows"]] == [
        "parent-a", "parent-b", "ensemble", "vanilla", "otfusion-acts", "otfusion-wts", "otfusion-emd",
    ]  # fmt: skip
    for row in results["rows"]:
        for key in ("one_shot", "finetuned"):
            right = row[key] * demo.HELD_OUT
            assert right == pytest.approx(round(right), abs=1e-9)
            assert 0 <= right <= demo.HELD_OUT
            assert row[f"{key}_loss"] > 0
        assert row["one_shot_loss"] != row["finetuned_loss"]


def test_softness_is_chosen_only_where_there_is_some(results):
    soft = {row["method"]: row["regulariser"] for row in results["rows"] if "regulariser" in row}
    assert list(soft) == ["otfusion-acts", "otfusion-wts"]
    for name, found in soft.items():
        assert found > 0
        assert any(f"{found:g} for {name}" in said for said in results["remarks"])


def test_what_is_written_is_what_is_returned(results, folder):
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (folder / "results.md").read_text() == results["table"]
    source = results["table"].splitlines()[-1]
    assert "`otfuse demo run`" in source
    assert f"torch {torch.__version__}" in source
    assert "parent-a 1, parent-b 2, fuse 0, finetune 0" in source
    assert results["machine"]["threads"] == 1
    assert {"settings", "seeds", "machine", "command", "seconds", "remarks"} < set(results)
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert sorted(p.name for p in folder.iterdir()) == [
        "figure.png", "parent-a", "parent-b", "results.json", "results.md",
    ]  # fmt: skip


@pytest.mark.usefixtures("results")
def test_a_whole_parent_is_reused_a_damaged_or_other_one_is_trained_again(folder):
    data, stages = demo.digits(TINY.probe), []

    def note(stage, done, total):
        stages.append((done, total))

    loaded = demo.parent(folder / "parent-a", 1, data, TINY, note)
    first = [p.detach().clone() for p in loaded.parameters()]  # the file it is mapped from is about to change
    assert stages == [(1, 1)]
    weights = folder / "parent-a" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    stages.clear()
    again = demo.parent(folder / "parent-a", 1, data, TINY, note)
    assert stages == [(step, 40) for step in range(1, 41)]
    assert all(torch.equal(a, b) for a, b in zip(first, again.parameters(), strict=True))
    stages.clear()
    demo.parent(folder / "parent-a", 5, data, TINY, note)
    assert len(stages) == 40


def test_finished_results_are_used_again_while_nothing_they_rest_on_has_changed(results, folder, monkeypatch):
    def never(*_):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(demo, "_fused", never)
        patch.setattr(demo, "compare", never)
        (folder / "figure.png").unlink()
        assert demo.run(folder, silent, TINY) == json.loads(json.dumps(results))
        assert (folder / "figure.png").is_file()
        for change in ({"probe": 25}, {"finetune": TINY.finetune.model_copy(update={"steps": 3})}):
            with pytest.raises(AssertionError):
                demo.run(folder, silent, replace(TINY, **change))
        patch.setattr(demo, "machine", lambda: {"torch": "other"})
        with pytest.raises(AssertionError):
            demo.run(folder, silent, TINY)
    first = earlier.fingerprint(1)
    assert (first == earlier.fingerprint(1), first == earlier.fingerprint(2)) == (True, False)


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


def test_digits_are_split_without_overlap_and_shifted_by_one_pixel():
    data = demo.digits(24)
    assert (data.train.size, data.held_out.size, data.probe.size) == (1797 - demo.HELD_OUT, demo.HELD_OUT, 24)
    assert data.probe.labels is None
    images, count = data.shifted.inputs["pixel_values"], data.train.size
    plain = data.train.inputs["pixel_values"]
    assert np.array_equal(images[4 * count : 5 * count], plain)  # the middle of nine places
    assert np.array_equal(images[:count, :, 1:, 1:], plain[:, :, :-1, :-1])
    assert np.array_equal(data.shifted.labels, np.tile(data.train.labels, 9))
    both = np.concatenate([plain, data.held_out.inputs["pixel_values"]]).reshape(1797, -1)
    assert plain.min() == -1
    assert plain.max() <= 1
    assert len(np.unique(both, axis=0)) == 1797  # no image twice, so none in both parts


def row(method, one_shot, finetuned, **notes):
    losses = {"one_shot_loss": 1.0, "finetuned_loss": 0.5}
    return {"method": method, "one_shot": one_shot, "finetuned": finetuned, **losses, **notes}


def test_a_low_one_shot_accuracy_is_said():
    parents = [row("parent-a", 0.98, 0.98), row("parent-b", 0.97, 0.99)]
    low = demo.remarks([*parents, row("vanilla", 0.2, 0.9), row("otfusion-emd", 0.86, 0.97)], TINY)
    assert any("One-shot accuracy is low" in said and "86.0 %" in said and "97.0 %" in said for said in low)
    assert any("no fused model is better" in said for said in low)
    good = demo.remarks(
        [*parents, row("vanilla", 0.2, 0.9), row("otfusion-acts", 0.88, 0.995, regulariser=0.05)],
        TINY,
    )
    assert not any("low" in said or "no fused model" in said for said in good)
    assert any(said.startswith("Regulariser: 0.05 for otfusion-acts;") for said in good)


def test_the_table_has_a_row_for_each_method():
    lines = demo.table([row("vanilla", 0.2, 0.9)], ["A remark."]).splitlines()
    assert lines[2] == "| vanilla | 20.0 | 1.000 | 90.0 | 0.500 |"
    assert lines[-1] == "A remark."


def test_a_folder_that_is_a_file_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError) as caught:
        demo.run(tmp_path / "taken", silent, TINY)
    assert "taken" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_ensemble_of_one_model_twice_scores_as_that_model():
    data = demo.digits(24)
    held_out = Dataset(data.held_out.inputs, data.held_out.labels).take(slice(0, 50))
    model = demo.image_classifier(seed=3).eval()
    small = demo.Digits(data.train, data.shifted, data.probe, held_out)
    candidates = [demo.Candidate("one", (model,), {}), demo.Candidate("both", (model, model), {})]
    one, both = demo.compare(candidates, small, TINY, silent)
    assert one["one_shot"] == both["one_shot"]
    assert both["finetuned_loss"] == pytest.approx(one["finetuned_loss"], rel=1e-6)
