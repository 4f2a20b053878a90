"""Seconds and peak memory of every stage of a run."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from typing import TYPE_CHECKING

from otfuse.core.report import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator


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


def peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
