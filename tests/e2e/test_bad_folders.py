"""Bad folders and places, and what changes or runs out while a fusion streams: one sentence, nothing written."""

from __future__ import annotations

import os
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from otfuse.io.shards import Shards
from tiny import build, listing

RECIPES = ("vanilla", "otfusion-wts")


def refused(ran, words):
    assert ran.status == 1, ran.err
    assert ran.out == ""
    assert ran.err.startswith("otfuse: ")
    assert ran.err.count("\n") == 1, ran.err
    assert "unexpected" not in ran.err
    assert words in ran.err


@pytest.fixture
def pair(tmp_path):
    """Two language models in several shards, in a place of the test's own."""
    for seed in (0, 1):
        build("llama", seed, layers=1).save_pretrained(tmp_path / f"m{seed}", max_shard_size="4KB")
    return tmp_path / "m0", tmp_path / "m1"


@pytest.fixture
def fuse(otfuse):
    return lambda *models, out, recipe="vanilla": otfuse(
        "fuse", *models, "--out", out, "--recipe", recipe, "--no-verify", "--quiet"
    )


def grows(path):
    with path.open("ab") as file:
        file.write(b"x")


def is_cut(path):
    os.truncate(path, path.stat().st_size - 8)


def is_replaced(path):
    other = path.with_suffix(".new")
    shutil.copyfile(path, other)
    other.rename(path)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("happens", [grows, is_cut, is_replaced])
@pytest.mark.parametrize("which", [0, 1])
def test_a_shard_that_changes_while_it_is_read(fuse, pair, tmp_path, monkeypatch, recipe, happens, which):
    shard, write, done = sorted(pair[which].glob("*.safetensors"))[1], Shards.write, []

    def write_and_change(self, key, blocks):
        write(self, key, blocks)
        if not done:
            done.append(key)
            happens(shard)

    monkeypatch.setattr(Shards, "write", write_and_change)
    before = [path for path in listing(tmp_path) if "new" not in path]
    refused(fuse(*pair, out=tmp_path / "out", recipe=recipe), f"{shard.name} changed while it was read; wait until")
    assert done
    assert listing(tmp_path) == before


@pytest.fixture
def disk(tmp_path):
    """``disk(size)`` mounts a small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("mounting a disk takes root")
        return place

    yield mount
    left = subprocess.run(["umount", place], capture_output=True, text=True, check=False)
    assert "busy" not in left.stderr, "no file is left open"


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("allocates", [True, False])
def test_a_disk_that_is_full_in_the_middle_of_the_second_shard(fuse, tmp_path, disk, monkeypatch, recipe, allocates):
    """It had room when it was asked; some systems say so when the file is laid out, others at the write."""
    for seed in (0, 1):
        build("llama", seed, layers=1, hidden=64, mlp=512).save_pretrained(
            tmp_path / f"m{seed}", max_shard_size="200KB"
        )
    first, second, *_ = sorted((tmp_path / "m0").glob("*.safetensors"))
    place = disk(f"{(first.stat().st_size + second.stat().st_size // 2) // 1024}k")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 40))
    if not allocates:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    ran = fuse(tmp_path / "m0", tmp_path / "m1", out=place / "new" / "out", recipe=recipe)
    refused(ran, "the disk is full (No space left on device), nothing was written; free some space")
    assert listing(place) == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_places_inside_and_around_models(fuse, pair, tmp_path, recipe):
    before = listing(tmp_path)
    for out, words in {
        pair[0] / "out": "lies inside",
        pair[1] / "deep" / "out": "lies inside",
        pair[0]: "is a model that goes in",
        pair[1]: "is a model that goes in",
        tmp_path: "holds",
    }.items():
        refused(fuse(*pair, out=out, recipe=recipe), words)
        assert listing(tmp_path) == before


def test_a_source_given_twice(fuse, pair, tmp_path):
    (tmp_path / "link").symlink_to(pair[1])
    before = listing(tmp_path)
    for again in (pair[1], tmp_path / "link", f"{pair[0]}/../m1"):
        refused(fuse(*pair, again, out=tmp_path / "out"), "given twice as a source, so that it would count twice")
        assert listing(tmp_path) == before
    assert fuse(pair[0], pair[0], out=tmp_path / "out").status == 0, (
        "with itself, a model may be fused: it stays itself"
    )


BROKEN = {
    "cut": ("tokenizer.json", '{"version": "1.0", "model": {"vocab": {"a"'),
    "empty": ("tokenizer.json", ""),
    "another thing": ("tokenizer.json", "[]"),
    "no numbers": ("tokenizer.json", '{"model": {"vocab": {"a": "b"}}}'),
    "settings": ("tokenizer_config.json", "{"),
    "a pointer": ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_tokenizer(fuse, models, tmp_path, kind, which):
    folders = [shutil.copytree(models / name, tmp_path / name) for name in ("bert0", "bert1")]
    name, text = BROKEN[kind]
    (folders[which] / name).write_text(text)
    before = listing(tmp_path)
    refused(fuse(*folders, out=tmp_path / "out"), name)
    assert listing(tmp_path) == before


def test_a_tokenizer_or_processor_that_is_missing(otfuse, models, data, tmp_path):
    bert, vit = (shutil.copytree(models / name, tmp_path / name) for name in ("bert0", "vit0"))
    for path in (*bert.glob("tokenizer*"), *vit.glob("*processor*")):
        path.unlink()
    config = (vit / "config.json").read_text()
    (vit / "config.json").write_text(config.replace('"image_size": 8', '"image_size": null'))
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.fromarray(np.full((8, 8), i, dtype=np.uint8)).save(tmp_path / "images" / f"{i}.png")
    before = listing(tmp_path)
    given = ("--out", tmp_path / "out", "--recipe", "otfusion-acts", "--quiet", "--data")
    refused(otfuse("fuse", bert, models / "bert1", *given, data / "text.txt"), "text needs a tokenizer")
    assert listing(tmp_path) == before
    ran = otfuse("fuse", vit, models / "vit1", *given, tmp_path / "images")
    refused(ran, "vit0")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_tensor_beside_the_model_of_every_kind_goes_through(fuse, pair, tmp_path, recipe):
    """Keys that the class does not know, counters, flags, numbers without axes, nothing at all: the anchor's are kept."""
    extra = {
        "x.n": torch.tensor(3),
        "x.flag": torch.tensor([True]),
        "x.zero": torch.tensor(1.5),
        "x.none": torch.zeros(0, 4),
    }
    for folder in pair:
        shard = min(folder.glob("*.safetensors"))
        index = folder / "model.safetensors.index.json"
        save_file(load_file(shard) | extra, shard, metadata={"format": "pt"})
        listed = "".join(f'"{name}": "{shard.name}", ' for name in extra)
        index.write_text(index.read_text().replace('"weight_map": {', f'"weight_map": {{{listed}'))
    assert fuse(*pair, out=tmp_path / "out", recipe=recipe).status == 0
    held = {n: t for path in (tmp_path / "out").glob("*.safetensors") for n, t in load_file(path).items()}
    assert all(torch.equal(held[name], tensor) for name, tensor in extra.items())
