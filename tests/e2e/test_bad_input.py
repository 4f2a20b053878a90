"""Every kind of bad input through the command line: one sentence, its status, no traceback, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from otfuse.testing.small import masked_lm
from tiny import build, listing, save


class Box:
    """Sound models and data, and a place of the test's own for what is wrong."""

    def __init__(self, models: Path, data: Path, place: Path) -> None:
        self.models, self.data, self.place = models, data, place
        self.out = place / "out"

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.models / name, self.place / name))

    def fuse(self, *models, **options):
        given = [part for key, value in options.items() for part in (f"--{key}", value)]
        return ["fuse", *(models or (self.models / "vit0", self.models / "vit1")), "--out", self.out, *given]

    def against(self, bad: Path, good: str):
        return self.fuse(self.models / good, bad)

    def arrays(self, **arrays: np.ndarray) -> Path:
        np.savez(self.place / "d.npz", **arrays)
        return self.place / "d.npz"

    def probe(self, data: Path, kind: str = "vit"):
        return self.fuse(self.models / f"{kind}0", self.models / f"{kind}1", data=data, recipe="otfusion-acts")

    def eval(self, model: str, data: Path):
        return ["eval", self.models / model, "--data", data]

    def tune(self, model: str, data: Path, *options: str):
        return ["finetune", self.models / model, "--data", data, "--out", self.out, *options]

    def recipe(self, text: str):
        (self.place / "r.yaml").write_text(text)
        return self.fuse(recipe=self.place / "r.yaml")


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def empty_folder(box):
    (box.place / "empty").mkdir()
    return box.against(box.place / "empty", "vit0")


def truncated(box):
    folder = box.copy("vit1")
    os.truncate(folder / "model.safetensors", 1000)
    return box.against(folder, "vit0")


def shard_missing(box):
    build("vit", 1).save_pretrained(box.place / "s", max_shard_size="4KB")
    sorted((box.place / "s").glob("*.safetensors"))[1].unlink()
    return box.against(box.place / "s", "vit0")


def not_finite(box):
    folder = box.copy("vit1")
    tensors = load_file(folder / "model.safetensors")
    tensors["vit.layernorm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return box.against(folder, "vit0")


def pickled(box):
    folder = box.copy("vit1")
    (folder / "model.safetensors").unlink()
    torch.save(build("vit", 1).state_dict(), folder / "pytorch_model.bin")
    return box.against(folder, "vit0")


def deeper(box):
    return box.against(save(build("vit", 1, layers=3), box.place / "deep"), "vit0")


def bigger_vocabulary(box):
    return save(masked_lm(vocabulary=50, length=16, hidden=16, heads=2, mlp=24), box.place / "words")


def changed_config(box, **changes):
    folder = box.copy("vit1")
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return box.against(folder, "vit0")


def broken_image(box):
    (box.place / "images").mkdir()
    (box.place / "images" / "cat.png").write_bytes(b"no image")
    return box.eval("vit0", box.place / "images")


def no_tokenizer(box):
    folder = box.copy("bert0")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    return ["eval", folder, "--data", box.data / "text.txt"]


def nan_model(box):
    """Finite weights whose outputs are not: a norm of activations that overflow."""
    for seed in (0, 1):
        model = build("vit", seed)
        with torch.no_grad():
            model.vit.embeddings.patch_embeddings.projection.weight.fill_(3e38)
        save(model, box.place / f"nan{seed}")
    return box.place / "nan0", box.place / "nan1"


def overfull(box):
    box.out.mkdir()
    (box.out / "mine").write_text("x")
    return box.fuse()


def below_a_file(box):
    (box.place / "file").write_text("x")
    return ["fuse", box.models / "vit0", box.models / "vit1", "--out", box.place / "file" / "out"]


CASES = {
    # checkpoints
    "missing folder": (lambda b: b.against(b.place / "nowhere/at/all", "vit0"), "no such folder; check the path"),
    "empty folder": (empty_folder, "the folder is empty; give a folder with config.json"),
    "truncated file": (truncated, "model.safetensors is truncated or damaged"),
    "shard missing": (shard_missing, "is missing; download it again"),
    "not finite": (not_finite, "'vit.layernorm.weight' in model.safetensors has values that are not finite"),
    "pickle": (pickled, "pass --allow-pickle"),
    "another class": (lambda b: b.fuse(b.models / "vit0", b.models / "bert1"), "cannot be fused"),
    "another depth": (deeper, "cannot be fused"),
    "another vocabulary": (
        lambda b: b.against(bigger_vocabulary(b), "bert0"),
        "cannot be fused",
    ),
    "no architectures": (lambda b: changed_config(b, architectures=None), "config.json names no class: add it"),
    "unknown architecture": (lambda b: changed_config(b, architectures=["NoSuchModel"]), "NoSuchModel"),
    "another config": (lambda b: changed_config(b, hidden_size=32), "do not belong together"),
    "custom code": (lambda b: changed_config(b, auto_map={"AutoModel": "m.M"}), "pass --trust-remote-code"),
    # data
    "no data": (lambda b: b.fuse(recipe="otfusion-acts"), "no data was given"),
    "auto without data": (
        lambda b: [*b.fuse(recipe="otfusion-wts"), "--set", "otfusion.regulariser=auto"],
        "a number as regulariser and a residual other than scalar and matrix",
    ),
    "missing data": (lambda b: b.probe(b.place / "d.npz"), "no such file or folder"),
    "array name": (lambda b: b.probe(b.arrays(pixel_value=pixels(4, 1, 8, 8))), "did you mean 'pixel_values'?"),
    "array shape": (lambda b: b.probe(b.arrays(pixel_values=pixels(4, 8, 8, 1))), "move the channels to axis 1"),
    "array type": (lambda b: b.probe(b.arrays(pixel_values=np.full((4, 1, 8, 8), "x"))), "holds text; give numbers"),
    "empty data": (lambda b: b.probe(b.arrays(pixel_values=pixels(0, 1, 8, 8))), "is empty"),
    "nan data": (lambda b: b.probe(b.arrays(pixel_values=pixels(4, 1, 8, 8) * np.nan)), "are not finite"),
    "one example": (lambda b: b.probe(b.arrays(pixel_values=pixels(1, 1, 8, 8))), "use more probe inputs"),
    "unknown token": (
        lambda b: b.probe(b.arrays(input_ids=np.full((4, 8), 999)), "bert"),
        "outside the model's",
    ),
    "no labels": (lambda b: b.eval("vit0", b.data / "images.npz"), "no labels"),
    "no labels to learn": (lambda b: b.tune("vit0", b.data / "images.npz"), "no labels"),
    "unknown label": (
        lambda b: b.eval("vit0", b.arrays(pixel_values=pixels(2, 1, 8, 8), labels=np.array([0, 3]))),
        "'labels' holds 3, outside the model's 3 classes",
    ),
    "broken image": (broken_image, "cannot be read as an image"),
    "no tokenizer": (no_tokenizer, "text needs a tokenizer"),
    "nan outputs, eval": (lambda b: ["eval", nan_model(b)[0], "--data", b.data / "labelled.npz"], "not numbers (nan)"),
    "nan outputs, fuse": (
        lambda b: [
            *b.fuse(*nan_model(b), data=b.data / "images.npz", recipe="otfusion-acts"),
            "--no-verify",
        ],
        "finite",
    ),
    "nan outputs, finetune": (
        lambda b: ["finetune", nan_model(b)[0], "--data", b.data / "labelled.npz", "--out", b.out],
        "is not finite at step 1",
    ),
    # recipes
    "unknown recipe": (lambda b: b.fuse(recipe="otfusion-wt"), "did you mean 'otfusion-wts'?"),
    "unknown key": (lambda b: b.recipe("scheme: otfusion\notfusion: {solvr: emd}"), "unknown key 'otfusion.solvr'"),
    "unknown value": (lambda b: b.recipe("scheme: otfusion\notfusion: {solver: emdd}"), "did you mean 'emd'?"),
    "unknown scheme": (lambda b: b.recipe("scheme: alinged"), "scheme cannot be 'alinged'; did you mean 'aligned'?"),
    "yaml typo": (lambda b: b.recipe("scheme: [otfusion\nseed: 1"), "not valid YAML at line 2"),
    "misspelt key": (lambda b: b.recipe("sheme: otfusion"), "unknown key 'sheme'; did you mean 'scheme'?"),
    "missing key": (lambda b: b.recipe("seed: 1"), "key 'scheme' is missing; add it: average or otfusion"),
    "key of a section": (lambda b: b.recipe("scheme: otfusion\nsolver: emd"), "did you mean 'otfusion.solver'?"),
    "dotted key": (lambda b: b.recipe("scheme: otfusion\notfusion.solver: emd"), "write otfusion: {solver: ...}"),
    "no section": (lambda b: b.recipe("scheme: otfusion\notfusion: emd"), "it is a section, whose keys are features"),
    "empty section": (lambda b: b.recipe("scheme: otfusion\notfusion:"), "no data was given"),
    "key twice": (lambda b: b.recipe("scheme: otfusion\nseed: 1\nseed: 2"), "key 'seed' is given twice at line 3"),
    "no date": (lambda b: b.recipe("scheme: otfusion\nseed: 2020-13-45"), "seed cannot be '2020-13-45'"),
    "deep yaml": (lambda b: b.recipe("scheme: " + "[" * 5000), "nested too deeply"),
    "exponent": (lambda b: b.recipe("scheme: otfusion\notfusion: {regulariser: -1e-3}"), "cannot be -0.001: allowed"),
    "weights": (lambda b: [*b.fuse(), "--set", "weights=[0.5, 0.6]"], "must sum to one, these sum to 1.1"),
    "number of weights": (lambda b: [*b.fuse(), "--set", "weights=[0.5, 0.3, 0.2]"], "3 given for 2 models"),
    "huge seed": (lambda b: [*b.fuse(), "--seed", str(2**63)], "seed cannot be"),
    "no patches": (
        lambda b: [*b.probe(b.arrays(input_ids=np.full((4, 8), 7)), "bert"), "--set", "otfusion.tokens=window:2"],
        "window",
    ),
    # places
    "bad device": (lambda b: [*b.fuse(), "--device", "cuda:99"], "device 'cuda:99' does not exist"),
    "bad device to learn": (lambda b: b.tune("vit0", b.data / "labelled.npz", "--device", "tpu"), "does not exist"),
    "meta": (lambda b: [*b.fuse(), "--device", "meta"], "device 'meta' holds shapes and no numbers"),
    "meta, dry run": (lambda b: [*b.fuse()[:3], "--dry-run", "--device", "meta"], "holds shapes and no numbers"),
    "meta to evaluate": (lambda b: [*b.eval("vit0", b.data / "labelled.npz"), "--device", "meta"], "holds shapes"),
    "meta to learn": (lambda b: b.tune("vit0", b.data / "labelled.npz", "--device", "meta"), "holds shapes"),
    "device of another torch": (lambda b: [*b.fuse(), "--device", "hpu"], "device 'hpu' does not exist"),
    "long name": (lambda b: [*b.fuse()[:3], "--out", b.place / ("x" * 300)], "name is too long"),
    "long name, hidden": (lambda b: [*b.fuse()[:3], "--out", b.place / ("x" * 240)], "File name too long"),
    "long name to learn": (
        lambda b: ["finetune", b.models / "vit0", "--data", b.data / "labelled.npz", "--out", b.place / ("x" * 300)],
        "name is too long",
    ),
    "no name": (lambda b: [*b.fuse()[:3], "--out", b.place / "no" / ".."], "names no folder of its own"),
    "full folder": (overfull, "the folder is not empty"),
    "anchor as out": (lambda b: [*b.fuse()[:3], "--out", b.models / "vit0"], "is a model that goes in"),
    "below a file": (below_a_file, "is a file, not a folder"),
    "picture nowhere": (
        lambda b: ["inspect", b.models / "vit0", "--svg", b.place / "no" / "x.svg"],
        "cannot be written",
    ),
}
USAGE = {
    "one model": (lambda b: b.fuse(b.models / "vit0"), "SOURCE"),
    "no out": (lambda b: b.fuse()[:3], "--out is missing"),
    "bad type": (lambda b: [*b.fuse(), "--dtype", "float31"], "float31"),
    "bad shard size": (lambda b: [*b.fuse(), "--out-shard-size", "5 apples"], "for example 5GB"),
    "shard size in bytes": (lambda b: [*b.fuse(), "--out-shard-size", "1B"], "one of KB, MB, GB, TB, KiB"),
    "bad shard size, dry run": (lambda b: [*b.fuse()[:3], "--dry-run", "--out-shard-size", "foo"], "'foo': write"),
    "warm-up all the way": (
        lambda b: b.tune("vit0", b.data / "labelled.npz", "--warmup", "1"),
        "warmup cannot be 1.0: input should be less than 1",
    ),
    "bad precision": (lambda b: b.tune("vit0", b.data / "labelled.npz", "--mixed-precision", "fp17"), "fp17"),
    "two lengths": (lambda b: b.tune("vit0", b.data / "labelled.npz", "--steps", "1", "--epochs", "1"), "give one"),
    "huge seed": (lambda b: ["inspect", b.models / "vit0", "--seed", str(2**63)], "below 2^63"),
}


def refused(ran, status, words):
    assert ran.status == status, ran.err
    assert ran.out == ""
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err.startswith("otfuse: ")
    assert "Traceback" not in ran.err
    assert "unexpected" not in ran.err
    assert words in ran.err


@pytest.mark.parametrize(
    ("make", "words", "status"),
    [(*case, 1) for case in CASES.values()] + [(*case, 2) for case in USAGE.values()],
    ids=[*CASES, *(f"usage, {name}" for name in USAGE)],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(otfuse, models, data, tmp_path, make, words, status):
    arguments = make(Box(models, data, tmp_path))
    before = listing(tmp_path), listing(models)
    ran = otfuse(*arguments, *(() if "inspect" in arguments else ("--quiet",)))
    if "inspect" in arguments:
        ran.err = "".join(line for line in ran.err.splitlines(keepends=True) if line.count(" ") > 1)
    refused(ran, status, words)
    assert (listing(tmp_path), listing(models)) == before


@pytest.mark.parametrize("name", [".", "../here", "it"])
def test_the_folder_one_is_in_is_refused_at_once(otfuse, models, tmp_path, monkeypatch, name):
    (tmp_path / "here").mkdir()
    (tmp_path / "it").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    out = tmp_path / name if name == "it" else name
    before = listing(tmp_path)
    ran = otfuse("fuse", models / "vit0", models / "vit1", "--out", out, "--quiet")
    refused(ran, 1, "a file of that name exists" if name == "it" else "this is the folder you are in")
    assert listing(tmp_path) == before


def test_a_mounted_disk_is_refused_at_once(otfuse, models, disk):
    place = disk("size=10m")
    refused(otfuse("fuse", models / "vit0", models / "vit1", "--out", place, "--quiet"), 1, "a disk is mounted there")


@pytest.mark.parametrize(("size", "bytes_"), [("4KB", 4000), ("4KiB", 4096), ("2 kib", 2048)])
def test_every_shard_size_that_is_allowed_is_written(otfuse, models, tmp_path, size, bytes_):
    given = ("fuse", models / "vit0", models / "vit1", "--out", tmp_path / "out", "--out-shard-size", size, "--quiet")
    assert otfuse(*given).status == 0
    shards = [load_file(path) for path in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert len(shards) > 1
    held = [sum(tensor.nbytes for tensor in shard.values()) for shard in shards]
    assert all(size <= bytes_ or len(shard) == 1 for size, shard in zip(held, shards, strict=True))
    assert len(held) < 2 * sum(held) / bytes_ + 2
    assert set().union(*shards) == load_file(models / "vit0" / "model.safetensors").keys()


@pytest.fixture
def disk(tmp_path):
    """``disk(options)`` mounts a small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("mounting a disk takes root")
        return place

    yield mount
    subprocess.run(["umount", place], capture_output=True, check=False)


@pytest.mark.parametrize("command", ["fuse", "finetune"])
@pytest.mark.parametrize(
    ("options", "words"), [("size=32k", "disk is full|GB needed|No space"), ("ro", "Read-only file system")]
)
def test_a_full_or_read_only_disk(otfuse, models, data, disk, command, options, words):
    place = disk(options)
    box = Box(models, data, place)
    given = box.fuse() if command == "fuse" else box.tune("vit0", data / "labelled.npz", "--epochs", "1")
    ran = otfuse(*given, "--quiet")
    refused(ran, 1, next((w for w in words.split("|") if w in ran.err), words))
    assert listing(place) == []
