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
    """Notes every stage in the order in which they begin; one that comes again goes on, and one inside another is not part of it."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._peaks: dict[str, float] = {}
        self._inside = [0.0]  # seconds of the stages inside each one that is open

    @property
    def stages(self) -> list[Stage]:
        """What has ended so far."""
        return [Stage(name, self._seconds[name], peak) for name, peak in self._peaks.items() if peak]

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block."""
        begun = time.perf_counter()
        self._peaks.setdefault(name, 0.0)
        self._inside.append(0.0)
        yield
        took = time.perf_counter() - begun
        self._seconds[name] = self._seconds.get(name, 0.0) + took - self._inside.pop()
        self._inside[-1] += took
        self._peaks[name] = peak_mib()


class Announcing(Clock):
    """A clock that tells every stage as it begins and ends."""

    def __init__(self, progress: Progress | None) -> None:
        super().__init__()
        self._progress = progress or (lambda _stage, _done, _total: None)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block, and tell of it when it begins for the first time."""
        if name not in self._peaks:
            self._progress(name, 0, 1)
        with super().stage(name):
            yield
        self._progress(name, 1, 1)


def peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
