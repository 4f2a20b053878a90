"""Tiny checkpoints of every class, and the real command line: inside the test's process, or as its own."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from otfuse.cli import main

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(_spec)
sys.modules["tiny"] = tiny
_spec.loader.exec_module(tiny)


@dataclass
class Ran:
    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """``models / "vit1"`` and so on: five classes, seeds 0 to 2, never written to by a test."""
    root = tmp_path_factory.mktemp("models")
    for kind in ("bert", "gpt2", "vit", "t5", "llama"):
        for seed in range(3):
            tiny.save(tiny.build(kind, seed), root / f"{kind}{seed}")
    return root


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Small data by name: images and tokens as arrays (with and without labels), and a text."""
    root, chance = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    images = chance.normal(size=(10, 1, 8, 8)).astype(np.float32)
    labels = chance.integers(0, 3, 10)
    ids = chance.integers(5, tiny.WORDS["vocabulary"], (10, tiny.LENGTH))
    np.savez(root / "images.npz", pixel_values=images)
    np.savez(root / "labelled.npz", pixel_values=images, labels=labels)
    np.savez(root / "ids.npz", input_ids=ids)
    np.savez(root / "pairs.npz", input_ids=ids, labels=ids)
    (root / "text.txt").write_text(tiny.TEXT * 8)
    return root


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def otfuse(capsys, monkeypatch):
    """``otfuse("fuse", ...)`` -> status, stdout, stderr; the whole program but its process."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.delenv("OTFUSE_DEBUG", raising=False)

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(list(map(str, arguments)))
        return Ran(left.value.code, *capsys.readouterr())

    return run


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "80"}
COMMAND = str(Path(sys.executable).with_name("otfuse"))


@pytest.fixture
def shell():
    """``shell("fuse", ...)`` -> status, stdout, stderr of a process of its own; some seconds each."""

    def run(*arguments, command=(COMMAND,)):
        ran = subprocess.run(
            [*command, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=240
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    run.command = lambda *arguments: [COMMAND, *map(str, arguments)]
    run.environment = ENVIRONMENT
    return run
