"""`otfuse fuse` ended at random writes, flushes and renames: nothing or the whole, and nothing beside it where that can be helped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from tiny import build, listing

# One process imports everything once and is forked for every trial, which counts what it does to the disk and kills itself.
SERVER = """
import importlib, json, os, sys
import torch
from otfuse import cli, pipeline
from otfuse.cli import problems
import otfuse.report.table, transformers.models.llama.modeling_llama
torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))  # imports the rest

def counted(do, at, number):
    def call(*given, **named):
        seen[0] += 1
        now = seen[0]
        if now == at and now % 2:
            os.kill(os.getpid(), number)
        made = do(*given, **named)
        if now == at and not now % 2:
            os.kill(os.getpid(), number)
        return made
    return call

for line in sys.stdin:
    arguments, at, number = json.loads(line)
    child = os.fork()
    if not child:
        seen, places = [0], [(os, name) for name in ("mkdir", "pwrite", "fsync", "rename")]
        if isinstance(at, list):
            place, name, at = at
            module, _, cls = place.partition(":")
            owner = importlib.import_module(module)
            places = [(getattr(owner, cls) if cls else owner, name)]
        for owner, name in places:
            setattr(owner, name, counted(getattr(owner, name), at, number))
        try:
            cli.main(arguments)
        finally:
            print("count", seen[0], file=sys.stderr, flush=True)
    _, status = os.waitpid(child, 0)
    print("over", os.waitstatus_to_exitcode(status), file=sys.stderr, flush=True)
"""


@pytest.fixture(scope="module")
def server():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        [sys.executable, "-u", "-c", SERVER], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        yield process
        process.stdin.close()


def trial(server, arguments, at=0, number=0):
    """The exit status, how much was done to the disk, and the last message of one run that is ended ``at`` a step."""
    print(json.dumps([list(map(str, arguments)), at, int(number)]), file=server.stdin, flush=True)
    said, count = "", 0
    while not (line := server.stderr.readline()).startswith("over "):
        assert line, f"the server is gone; it said: {said}"
        if line.startswith("count "):
            count = int(line.split()[1])
        else:
            said = line
    return int(line.split()[1]), count, said


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    for seed in (0, 1):
        build("llama", seed, layers=1).save_pretrained(root / f"m{seed}", max_shard_size="1KB")
    return root


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("recipe", ["vanilla", "otfusion-wts"])
def test_ten_random_moments(server, shards, tmp_path, recipe):
    out = tmp_path / "new" / "out"
    arguments = ("fuse", shards / "m0", shards / "m1", "--out", out, "--recipe", recipe, "--no-verify", "--quiet")
    status, steps, said = trial(server, arguments)
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
        status, _, said = trial(server, arguments, at, number)
        if out.exists():  # the signal came with the rename
            assert listing(out) == list(whole)
        elif number == signal.SIGKILL:
            assert (status, said) == (-signal.SIGKILL, "")
            assert all(part.startswith("new/.out.") for part in listing(tmp_path)[1:])
        else:
            assert (status, said) == (130, "otfuse: interrupted; nothing unfinished was left behind\n"), at
            assert listing(tmp_path) == [], at
    assert trial(server, arguments)[0] == 0 if not out.exists() else True
    assert listing(out.parent) == ["out", *(f"out/{path}" for path in whole)], "what killed runs left is swept away"
    for path, tensors in weights.items():
        again = load_file(out / path)
        assert again.keys() == tensors.keys()
        assert all((again[name] == tensor).all() for name, tensor in tensors.items())


def test_the_first_folder_made_is_removed_too(server, shards, tmp_path):
    """An interruption while the place is tried or the hidden folder is made."""
    arguments = ("fuse", shards / "m0", shards / "m1", "--out", tmp_path / "out", "--recipe", "vanilla", "--quiet")
    for at in (1, 2, 3, 4):
        status, _, said = trial(server, arguments, at, signal.SIGTERM)
        assert (status, said) == (130, "otfuse: interrupted; nothing unfinished was left behind\n"), at
        assert listing(tmp_path) == [], at


SHORT = "--set refined.steps=6 --set refined.learning_rate=0.01 --set distilled.learning_rate=1e-3"
STAGED = {  # two commands of several stages, and a place in each stage: the third time that something is done there
    f"--recipe distilled --set distilled.start=auto --steps 6 {SHORT}": (
        ("otfuse.align.descent:Descent", "step", 3),
        ("otfuse.measure.targets", "_prediction", 3),
        ("otfuse.calibrate.sweep", "ridge", 3),
    ),
    f"--recipe calibrated --set calibrated.start=refined {SHORT}": (
        ("otfuse.train.worker:Worker", "update", 3),
        ("otfuse.calibrate.sweep", "ridge", 3),
    ),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("recipe", STAGED, ids=lambda recipe: recipe.split()[1])
def test_in_the_middle_of_every_stage(server, models, data, tmp_path, recipe):
    """What is left is nothing, or what the same command goes on from, to the same weights."""
    pair = models / "vit0", models / "vit1"

    def line(out):
        return ("fuse", *pair, "--data", data / "images.npz", "--out", out, "--no-verify", "--quiet", *recipe.split())

    whole, out = tmp_path / "whole", tmp_path / "out"
    assert trial(server, line(whole))[0] == 0
    weights = load_file(whole / "model.safetensors")
    for at in STAGED[recipe]:
        status, _, said = trial(server, line(out), at, signal.SIGKILL)
        assert (status, said) == (-signal.SIGKILL, ""), at
        assert not out.exists(), at
        assert all(path.name == "whole" or path.name.startswith(".out.") for path in tmp_path.iterdir()), at
    assert trial(server, line(out))[0] == 0
    again = load_file(out / "model.safetensors")
    assert all((again[name] == tensor).all() for name, tensor in weights.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
