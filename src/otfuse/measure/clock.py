"""Seconds and peak memory of every stage of a run."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from typing import TYPE_CHECKING

from otfuse.core.report import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Progress = Callable[[str, int, int], None]  # stage, how much of it is done, of how much


class Clock:
    """Notes every stage as it ends."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block."""
        begun = time.perf_counter()
        yield
        self.stages.append(Stage(name, time.perf_counter() - begun, peak_mib()))


class Announcing(Clock):
    """A clock that tells every stage as it begins and ends."""

    def __init__(self, progress: Progress | None) -> None:
        super().__init__()
        self._progress = progress or (lambda _stage, _done, _total: None)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block, and tell of it."""
        self._progress(name, 0, 1)
        with super().stage(name):
            yield
        self._progress(name, 1, 1)


def peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
