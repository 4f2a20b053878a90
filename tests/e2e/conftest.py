"""Tiny checkpoints of every class, and the real command line: inside the test's process, or as its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import forked
import tiny


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


ENVIRONMENT = {**os.environ, **forked.ENVIRONMENT}
COMMAND = str(Path(sys.executable).with_name("otfuse"))


@pytest.fixture
def shell():
    """``shell("fuse", ...)`` -> status, stdout, stderr of a process of its own; some seconds each."""

    def run(*arguments, command=(COMMAND,)):
        ran = subprocess.run(
            [*command, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=240
        )
        return SimpleNamespace(status=ran.returncode, out=ran.stdout, err=ran.stderr)

    run.command = lambda *arguments: [COMMAND, *map(str, arguments)]
    run.environment = ENVIRONMENT
    return run
