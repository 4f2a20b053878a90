"""The plain average of equal names costs what it does: every tensor is read once, and no library that it does not need."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from otfuse.core import recipe
from otfuse.io.stored import Stored
from otfuse.pipeline import fuse_checkpoints

SLOW = {"transformers", "accelerate", "datasets", "pandas", "sklearn", "matplotlib", "pyarrow"}
LOADED = "import sys\nfrom otfuse.cli import main\ntry:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)"


@pytest.fixture
def pair(models):
    return [models / "llama0", models / "llama1"]


def test_every_byte_is_read_once(pair, tmp_path, monkeypatch):
    read = []
    whole = Stored._bytes

    def counting(self, info, start, count, key=""):
        read.append(count)
        return whole(self, info, start, count, key)

    monkeypatch.setattr(Stored, "_bytes", counting)
    fuse_checkpoints(str(pair[0]), [str(pair[1])], tmp_path / "out", recipe=recipe.read("vanilla", {}))
    files = [load_file(folder / "model.safetensors") for folder in pair]
    assert sum(read) == sum(t.numel() * t.element_size() for tensors in files for t in tensors.values())
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.allclose(made[n], (files[0][n] + files[1][n]) / 2, rtol=1e-6, atol=1e-7) for n in made)


@pytest.mark.parametrize(("recipe_name", "needed"), [("vanilla", False), ("otfusion-wts", True)])
def test_slow_libraries_wait_until_they_are_needed(shell, pair, tmp_path, recipe_name, needed):
    line = ("fuse", *pair, "--out", tmp_path / "out", "--recipe", recipe_name, "-q")
    ran = shell(*line, command=(sys.executable, "-c", LOADED))
    loaded = {name.partition(".")[0] for name in ran.err.split()}
    assert ran.status == 0
    assert ("transformers" in loaded) is needed
    assert needed or not loaded & SLOW


def test_data_that_a_plain_average_does_not_look_at_are_told(otfuse, pair, data, tmp_path):
    given = ("fuse", *pair, "--recipe", "vanilla", "--json", "-q")
    ran = otfuse(*given, "--out", tmp_path / "out", "--data", data / "ids.npz")
    assert any("looks at no data" in note for note in json.loads(ran.out)["notes"])
    ran = otfuse(*given, "--out", tmp_path / "other", "--data", data / "absent.npz")
    assert ran.status == 1
    assert "no such file" in ran.err
    assert not (tmp_path / "other").exists()
