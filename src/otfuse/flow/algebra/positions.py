"""From the factors of an axis to numbers: at which positions of a stored tensor a unit lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from otfuse.flow.algebra.axes import Algebra, Atom, Axis


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Positions of an axis that have the same factors: ``index[leaf][i]`` is the leaf's index at ``positions[i]``."""

    positions: NDArray[np.int64]
    index: dict[int, NDArray[np.int64]]
    repeated: frozenset[int]  # leaves that stand twice in this product: their places cannot be told by one unit


def segments(algebra: Algebra, axis: Axis) -> list[Segment]:
    """The axis taken apart; sums give a segment for every part."""
    result = [Segment(np.zeros(1, np.int64), {}, frozenset())]
    for atom in algebra.flat(axis):
        size = algebra.size((atom,))
        result = [_product(left, right, size) for left in result for right in _alternatives(algebra, atom)]
    return result


def _alternatives(algebra: Algebra, atom: Atom) -> Iterator[Segment]:
    if not algebra.is_sum(atom):
        index = np.arange(algebra.size((atom,)), dtype=np.int64)
        yield Segment(index, {atom: index}, frozenset())
        return
    offset = 0
    for part in algebra.parts(atom):
        for segment in segments(algebra, part):
            yield Segment(segment.positions + offset, segment.index, segment.repeated)
        offset += algebra.size(part)


def _product(left: Segment, right: Segment, size: int) -> Segment:
    count = len(right.positions)
    positions = (left.positions[:, None] * size + right.positions[None, :]).reshape(-1)
    index = {leaf: np.repeat(values, count) for leaf, values in left.index.items()}
    twice = left.index.keys() & right.index.keys()
    index |= {leaf: np.tile(values, len(left.positions)) for leaf, values in right.index.items()}
    return Segment(positions, index, left.repeated | right.repeated | twice)


def positions(
    parts: Sequence[Segment], leaf: Atom, inside: Sequence[tuple[Atom, int]], size: int
) -> NDArray[np.int64] | None:
    """``[copies, size, width]``: where unit ``u`` of copy ``c`` lies; copies are counted over ``inside``, outermost first.

    ``inside`` are (leaf, size) of the copies that stand on the same axis. None if the units do not all have equally
    many places (then no permutation of them is one of positions).
    """
    copies: list[NDArray[np.int64]] = []
    units: list[NDArray[np.int64]] = []
    places: list[NDArray[np.int64]] = []
    for part in parts:
        if leaf not in part.index:
            continue
        if leaf in part.repeated or any(dep not in part.index for dep, _ in inside):
            return None
        copy = np.zeros(len(part.positions), np.int64)
        for dep, count in inside:
            copy = copy * count + part.index[dep]
        copies.append(copy)
        units.append(part.index[leaf])
        places.append(part.positions)
    copy, unit, place = np.concatenate(copies), np.concatenate(units), np.concatenate(places)
    number = int(np.prod([count for _, count in inside])) if inside else 1
    if not size or len(place) % (number * size):
        return None
    order = np.lexsort((place, unit, copy))
    table = place[order].reshape(number, size, -1)
    owners = (copy * size + unit)[order].reshape(number * size, -1)
    return table if (owners == np.arange(number * size)[:, None]).all() else None
