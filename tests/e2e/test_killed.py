"""`otfuse fuse` ended at random writes, flushes and renames: nothing or the whole, and nothing beside it where that can be helped."""

from __future__ import annotations

import random
import signal

import pytest
from safetensors.torch import load_file

from forked import ended, started
from tiny import build, listing

DISK = [("os", name) for name in ("mkdir", "pwrite", "fsync", "rename")]


def trial(arguments, at=0, number=0, places=DISK):
    """The exit status, how much was done to the disk, and the last message of one run that is ended ``at`` a step."""
    process, lines = started(ended, places, at, int(number), *map(str, arguments))
    said, count = "", 0
    with lines:
        for line in lines:
            if line.startswith("count "):
                count = int(line.split()[1])
            else:
                said = line
    process.join()
    return process.exitcode, count, said


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    for seed in (0, 1):
        build("llama", seed, layers=1).save_pretrained(root / f"m{seed}", max_shard_size="1KB")
    return root


@pytest.mark.parametrize("recipe", ["vanilla", "otfusion-wts"])
def test_ten_random_moments(shards, tmp_path, recipe):
    out = tmp_path / "new" / "out"
    arguments = ("fuse", shards / "m0", shards / "m1", "--out", out, "--recipe", recipe, "--no-verify", "--quiet")
    status, steps, said = trial(arguments)
    assert (status, said) == (0, f"otfuse: wrote {out}\n")
    whole = {path: (out / path).is_file() and path not in ("fusion.json", "README.md") for path in listing(out)}
    weights = {path: load_file(out / path) for path in whole if path.endswith(".safetensors")}
    assert len(weights) > 5
    chance = random.Random(recipe)
    moments = [*chance.sample(range(1, steps), 9), steps]  # the last is the rename
    for i, at in enumerate(moments):
        number = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)[i % 3] if i < 9 else signal.SIGKILL
        for path in sorted(tmp_path.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        status, _, said = trial(arguments, at, number)
        if out.exists():  # the signal came with the rename
            assert listing(out) == list(whole)
        elif number == signal.SIGKILL:
            assert (status, said) == (-signal.SIGKILL, "")
            assert all(part.startswith("new/.out.") for part in listing(tmp_path)[1:])
        else:
            assert (status, said) == (130, "otfuse: interrupted; nothing unfinished was left behind\n"), at
            assert listing(tmp_path) == [], at
    assert trial(arguments)[0] == 0 if not out.exists() else True
    assert listing(out.parent) == ["out", *(f"out/{path}" for path in whole)], "what killed runs left is swept away"
    for path, tensors in weights.items():
        again = load_file(out / path)
        assert again.keys() == tensors.keys()
        assert all((again[name] == tensor).all() for name, tensor in tensors.items())


def test_the_first_folder_made_is_removed_too(shards, tmp_path):
    """An interruption while the place is tried or the hidden folder is made."""
    arguments = ("fuse", shards / "m0", shards / "m1", "--out", tmp_path / "out", "--recipe", "vanilla", "--quiet")
    for at in (1, 2, 3, 4):
        status, _, said = trial(arguments, at, signal.SIGTERM)
        assert (status, said) == (130, "otfuse: interrupted; nothing unfinished was left behind\n"), at
        assert listing(tmp_path) == [], at


SHORT = "--set refined.steps=6 --set refined.learning_rate=0.01 --set distilled.learning_rate=1e-3"
STAGED = {  # two commands of several stages, and a place in each stage: it ends the third time that something is done there
    f"--recipe distilled --set distilled.start=auto --steps 6 {SHORT}": (
        ("otfuse.align.descent:Descent", "step"),
        ("otfuse.measure.targets", "_prediction"),
        ("otfuse.calibrate.sweep", "ridge"),
    ),
    f"--recipe calibrated --set calibrated.start=refined {SHORT}": (
        ("otfuse.train.worker:Worker", "update"),
        ("otfuse.calibrate.sweep", "ridge"),
    ),
}


@pytest.mark.parametrize("recipe", STAGED, ids=lambda recipe: recipe.split()[1])
def test_in_the_middle_of_every_stage(models, data, tmp_path, recipe):
    """What is left is nothing, or what the same command goes on from, to the same weights."""
    pair = models / "vit0", models / "vit1"

    def line(out):
        return ("fuse", *pair, "--data", data / "images.npz", "--out", out, "--no-verify", "--quiet", *recipe.split())

    whole, out = tmp_path / "whole", tmp_path / "out"
    assert trial(line(whole))[0] == 0
    weights = load_file(whole / "model.safetensors")
    for at in STAGED[recipe]:
        status, _, said = trial(line(out), 3, signal.SIGKILL, [at])
        assert (status, said) == (-signal.SIGKILL, ""), at
        assert not out.exists(), at
        assert all(path.name == "whole" or path.name.startswith(".out.") for path in tmp_path.iterdir()), at
    assert trial(line(out))[0] == 0
    again = load_file(out / "model.safetensors")
    assert all((again[name] == tensor).all() for name, tensor in weights.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
