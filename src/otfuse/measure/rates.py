"""How fast this machine is now, measured in a fraction of a second: what turns a plan into seconds."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

_SIDE = 512  # of the matrices that are multiplied: large enough for the full rate
_BYTES = 1 << 25  # copied: more than the caches hold
_HASHED = 1 << 22
_TURNS = 100_000


@dataclass(frozen=True, slots=True)
class Rates:
    """What is done in a second beside whatever else the machine does.

    ``single``, ``double``: floating operations in products of matrices of that precision; ``memory``: bytes read and
    written; ``hashed``: bytes of which SHA-256 is taken; ``python``: turns of an empty loop.
    """

    single: float
    double: float
    memory: float
    hashed: float
    python: float


def rates() -> Rates:
    """The rates of the processor."""
    one, two = (torch.ones(_SIDE, _SIDE, dtype=dtype) for dtype in (torch.float32, torch.float64))
    here, there = (torch.ones(_BYTES, dtype=torch.uint8) for _ in range(2))
    return Rates(
        2 * _SIDE**3 / _least(lambda: one @ one),
        2 * _SIDE**3 / _least(lambda: two @ two),
        2 * _BYTES / _least(lambda: here.copy_(there)),
        _HASHED / _least(lambda: hashlib.sha256(bytes(_HASHED)).digest()),
        _TURNS / _least(_turn),
    )


def _turn() -> None:
    for _ in range(_TURNS):
        pass


def _least(do: Callable[[], object]) -> float:
    """Seconds of the fastest of three: the first one warms up, another may be interrupted."""
    took = []
    for _ in range(3):
        began = time.perf_counter()
        do()
        took.append(time.perf_counter() - began)
    return max(min(took), 1e-9)
