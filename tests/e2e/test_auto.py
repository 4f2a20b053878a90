"""`otfuse fuse` with schemes of several stages: files, report, plan, killed and resumed, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from forked import ended, started
from otfuse.measure import targets
from tiny import listing

FILES = {"README.md", "config.json", "fusion.json", "model.safetensors", "preprocessor_config.json"}


@pytest.fixture
def line(models, data, tmp_path):
    """A command that is whole but for its recipe."""
    return (
        "fuse",
        models / "vit0",
        models / "vit1",
        "--data",
        data / "images.npz",
        "--out",
        tmp_path / "out",
        "--quiet",
    )


def test_auto_by_steps_writes_a_checkpoint_and_tells_of_its_stages(otfuse, line, models, data, tmp_path):
    ran = otfuse(*line, "--steps", "4", "--json")
    assert ran.status == 0, ran.err
    out = tmp_path / "out"
    assert set(listing(out)) == FILES
    assert listing(tmp_path) == ["out", *sorted(f"out/{name}" for name in FILES)]
    told = json.loads(ran.out)
    assert told["recipe"]["auto"]["steps"] == 4
    assert [(row["kind"], row["kept"]) for row in told["compared"]][:3] == [
        ("parent", None),
        ("parent", None),
        ("stage", True),
    ]
    kept = json.loads((out / "fusion.json").read_text())
    assert kept["compared"] == told["compared"]
    assert [stage["name"] for stage in kept["stages"]] == [
        "load", "trace", "verify", "measure", "align", "average", "targets", "judge", "calibrate", "distil", "write",
    ]  # fmt: skip
    assert "| parent or stage | figure | seconds | |" in (out / "README.md").read_text()
    again = otfuse(*(tmp_path / "again" if a == out else a for a in line), "--steps", "4")
    assert again.status == 0
    assert "parent or stage" in again.out
    assert "kept" in again.out
    one, other = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "again"))
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items()), "same seed and steps, same result"
    scored = otfuse("eval", out, "--data", data / "labelled.npz", "--json")
    assert scored.status == 0


def test_a_dry_run_tells_stages_and_cost_and_writes_nothing(otfuse, line, tmp_path):
    plans = [
        json.loads(otfuse(*line, "--dry-run", "--json", *more).out) for more in (("--steps", "9"), ("--budget", "2m"))
    ]
    assert [stage["name"] for stage in plans[0]["stages"]] == ["start", "targets", "calibrated", "distilled"]
    assert plans[0]["stages"][3]["what"] == "9 steps, batches of 32"
    assert plans[1]["seconds"] > 120
    assert plans[0]["memory_mib"] > 0
    shown = otfuse(*line, "--dry-run", "--recipe", "distilled")
    assert "500 steps, batches of 32" in shown.out
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_goes_on_to_the_same_files(otfuse, line, tmp_path):
    more = ("--recipe", "distilled", "--set", "distilled.start=plain", "--set", "distilled.learning_rate=1e-3")
    more += ("--steps", "120")
    whole = tmp_path / "whole"
    assert otfuse(*(whole if a == tmp_path / "out" else a for a in line), *more).status == 0
    told = json.loads((whole / "fusion.json").read_text())["notes"]
    process, said = started(
        ended, [("otfuse.train.worker:Worker", "update")], 110, signal.SIGTERM, *map(str, (*line, *more))
    )
    with said:
        assert "give the same command again to go on from the last saved state\n" in said.read()
    process.join()
    assert process.exitcode == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.progress", "whole"]
    other = otfuse(*line, "--recipe", "distilled", "--steps", "7")
    assert (other.status, other.err.count("\n")) == (1, 1)
    assert "holds the progress of another run (recipe differ); delete the folder or pass --restart" in other.err
    assert otfuse(*line, *more).status == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]
    assert json.loads((tmp_path / "out" / "fusion.json").read_text())["notes"] == told
    one, again = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(again[name], tensor) for name, tensor in one.items())


def test_a_restart_forgets_what_was_kept(otfuse, line, tmp_path):
    left = tmp_path / ".out.progress"
    left.mkdir()
    (left / "distilled.pt").write_bytes(b"damaged")
    line = (*line, "--recipe", "distilled", "--set", "distilled.start=anchor", "--steps", "2", "--no-verify")
    ran = otfuse(*line)
    assert (ran.status, "cannot be read; delete the folder or pass --restart" in ran.err) == (1, True)
    assert otfuse(*line, "--restart").status == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_disk_that_fills_while_targets_are_kept_is_one_sentence(otfuse, line, tmp_path, monkeypatch):
    class Full:
        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self):
            pass

    monkeypatch.setattr(targets, "free_mib", lambda: 0.0)
    monkeypatch.setattr(targets.tempfile, "TemporaryFile", Full)
    ran = otfuse(*line, "--steps", "2")
    assert (ran.status, ran.err.count("\n")) == (1, 1)
    assert "set TMPDIR to a place with more" in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "status", "sentence"),
    [
        (
            ("--recipe", "vanilla", "--budget", "5s"),
            2,
            "--budget goes with a recipe that trains for it, and vanilla does not",
        ),
        (("--recipe", "distilled", "--budget", "5s"), 2, "--budget goes with a recipe that trains for it"),
        (("--budget", "soon"), 1, "auto.budget cannot be 'soon': allowed: a number with s, m or h"),
        (("--steps", "-1"), 2, "Invalid value for '--steps'"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(otfuse, line, tmp_path, more, status, sentence):
    ran = otfuse(*line, *more)
    assert ran.status == status
    assert sentence in ran.err
    assert ran.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_text_with_a_tokenizer_and_fewer_examples_than_a_batch(otfuse, models, data, tmp_path):
    with np.load(data / "ids.npz") as archive:
        np.savez(tmp_path / "few.npz", input_ids=archive["input_ids"][:3])
    ran = otfuse(
        "fuse",
        models / "bert0",
        models / "bert1",
        "--data",
        tmp_path / "few.npz",
        "--steps",
        "3",
        "--out",
        tmp_path / "o",
        "--json",
        "-q",
    )
    assert ran.status == 0, ran.err
    assert any(note.startswith("3 inputs to learn from") for note in json.loads(ran.out)["notes"])
