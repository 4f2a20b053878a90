"""The command line without what stands behind it."""

from __future__ import annotations

import pytest

from behind import STANDS


@pytest.fixture(autouse=True)
def _no_libraries(monkeypatch):
    """What settles the heavy libraries' own words is left out, so that they do not load."""
    monkeypatch.setattr("otfuse.cli.output._configure", lambda **_: None)


@pytest.fixture
def pipeline(monkeypatch):
    """``pipeline(inspect=function)`` puts stubs in the place of what commands call, wherever that stands."""

    def put(**functions):
        for name, function in functions.items():
            monkeypatch.setattr(f"{STANDS[name]}.{name}", function)

    return put
