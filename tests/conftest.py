"""What holds for every test, and the command line inside the test's process."""

from __future__ import annotations

import signal
import sys
from types import SimpleNamespace

import pytest
import torch

from otfuse.cli import main
from otfuse.testing.examples import EXAMPLES


def pytest_collection_modifyitems(items):
    """One of several processes traces a model of the database, or makes what the tests of a file share, once."""
    for item in items:
        name = item.callspec.params.get("name") if hasattr(item, "callspec") else None
        item.add_marker(pytest.mark.xdist_group(name if name in EXAMPLES else item.path.stem))


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny products: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def code_cache(tmp_path, monkeypatch):
    """Where the library copies a checkpoint's own code to run it: a place of the test's own, forgotten afterwards."""

    def forget():
        for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
            del sys.modules[name]

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    forget()
    yield tmp_path / "cache"
    forget()


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
