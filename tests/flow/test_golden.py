"""Flow graphs that a person has reviewed; rewrite with: python -m otfuse.testing.golden tests/flow/expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from otfuse.testing.golden import GOLDEN, golden

FOLDER = Path(__file__).parent / "expected"


@pytest.mark.parametrize("name", GOLDEN)
def test_graph_is_the_reviewed_one(name):
    assert golden(name) == (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


def test_every_file_is_compared():
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(GOLDEN)
