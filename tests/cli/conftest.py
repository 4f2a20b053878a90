"""Running the command line inside the test's process."""

from __future__ import annotations

import importlib.util
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from otfuse.cli import main

_spec = importlib.util.spec_from_file_location("drawing", Path(__file__).with_name("drawing.py"))
drawing = importlib.util.module_from_spec(_spec)
sys.modules["drawing"] = drawing
_spec.loader.exec_module(drawing)


@dataclass
class Ran:
    status: int
    out: str
    err: str


@pytest.fixture
def otfuse(capsys, monkeypatch):
    """``otfuse("inspect", "model")`` -> status, stdout, stderr."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("otfuse.cli.output._configure", lambda **_: None)
    monkeypatch.delenv("OTFUSE_DEBUG", raising=False)

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main(list(map(str, arguments)))
        return Ran(left.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def pipeline(monkeypatch):
    """``pipeline(inspect=function)`` puts stubs in the place of the pipeline's functions."""

    def put(**functions):
        from otfuse import pipeline as module

        for name, function in functions.items():
            monkeypatch.setattr(module, name, function, raising=False)

    return put
