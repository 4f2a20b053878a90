"""What holds for every test, and the command line inside the test's process."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest
import torch

from otfuse.cli import main


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny products: threads would only wait for each other."""
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
        out, err = capsys.readouterr()
        return SimpleNamespace(status=left.value.code, out=out, err=err)

    return run
