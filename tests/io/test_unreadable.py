"""What may not be read is told so, and not called damaged or absent."""

import re

import pytest
import torch
from safetensors.torch import load_file

from otfuse.errors import CheckpointError, DataError
from otfuse.io.checkpoint import open_checkpoint
from otfuse.io.data import load_data


def refused(error, start, ask):
    sentence = f"{start} be read (Permission denied); check its permissions"
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        ask()


@pytest.mark.parametrize("name", ["d.npz", "d.safetensors", "d.txt", "images"])
def test_data(name, open_place, barred):
    path = open_place / name
    if name == "images":
        path.mkdir()
    else:
        path.write_bytes(b"whatever")
    with barred(path):
        refused(DataError, f"data {path}: cannot", lambda: load_data(path, input_names=["pixel_values"]))


@pytest.mark.parametrize("name", ["", "config.json", "model.safetensors", "pytorch_model.bin"])
def test_checkpoints(name, build, open_place, barred):
    folder = open_place / "anchor"
    build("vit").save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    if name == "pytorch_model.bin":
        torch.save(load_file(folder / "model.safetensors"), folder / name)
        (folder / "model.safetensors").unlink()
    what = f"{name} cannot" if name else "the folder cannot"
    with barred(folder / name):
        refused(CheckpointError, f"checkpoint {folder}: {what}", lambda: open_checkpoint(folder, allow_pickle=True))
