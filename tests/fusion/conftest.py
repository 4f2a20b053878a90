"""Makes the helpers of the tests of align importable here too."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

_spec = importlib.util.spec_from_file_location("align_copies", Path(__file__).parents[1] / "align" / "copies.py")
_copies = importlib.util.module_from_spec(_spec)
sys.modules["align_copies"] = _copies
_spec.loader.exec_module(_copies)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tiny products: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
