"""The plain average: what has the same name and shape, as it lies, without a trace."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import torch

from otfuse.errors import MatchError
from otfuse.fusion.apply import mixed
from otfuse.program.weights import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from otfuse.fusion.sides import Parent

T = TypeVar("T")
_THREADS = 2  # one reads and hashes while the other adds and writes: more only wait for the disk
_KEPT = (1 << 25) - (1 << 14)  # bytes: just below the most that glibc lets its threshold grow to


def plain_pieces(parents: Sequence[Parent], weights: Sequence[float]) -> list[tuple[str, Iterator[torch.Tensor]]]:
    """Every tensor of the anchor by its first name, with its averaged values, flat, in blocks.

    What a source lacks because it has no head stays the anchor's. Raises MatchError for anything else that differs.
    """
    anchor, *others = parents
    for other in others:
        _require_same(anchor, other)
    found = []
    for name in anchor.weights.alike:
        if any(name in other.lacking for other in others):
            found.append((name, anchor.weights.blocks(name, BLOCK)))
        else:
            found.append((name, mixed(name, anchor.weights, [o.weights for o in others], [()] * len(others), weights)))
    return found


def _require_same(anchor: Parent, source: Parent) -> None:
    ours, theirs = anchor.weights, source.weights
    where = f"{source.name} cannot be fused into {anchor.name}"
    for name in [*ours, *theirs]:
        if name not in ours or name not in theirs:
            side = "the anchor" if name in ours else "the source"
            raise MatchError(
                f"{where}: their architectures differ (only {side} has {name!r}); give models of the same class, depth and options"
            )
    first = {name: names[0] for names in theirs.alike.values() for name in names}
    for names in ours.alike.values():
        if odd := next((name for name in names if first[name] != first[names[0]]), None):
            raise MatchError(
                f"{where}: {odd!r} and {names[0]!r} are one tensor in the anchor and two in the source, of which one would "
                "be lost; take the other model as anchor, or untie the anchor's (tie_word_embeddings: false)"
            )


def at_once(do: Callable[[T], None], items: Sequence[T]) -> Iterator[None]:
    """``do`` for every item, two at a time, each with one of PyTorch's threads; what fails ends it."""
    bytes(_KEPT)  # never touched, and freed: from now on glibc keeps blocks of up to that size for the next
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(_THREADS, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(do, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what threads that start later are given
