"""Where every position of an axis lies: in which spaces, and at which number of each."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from otfuse.errors import UnequalError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otfuse.align.spaces import Spaces

Sizes: TypeAlias = dict[str, tuple[int, int]]  # by space: copies (of one inside another: in each of its units), units
Flags: TypeAlias = tuple[str, bool, bool, bool]  # space, inverse, order only, copies along another axis


class Spot(NamedTuple):
    """Where one position lies: the spaces that hold it, and its number in each, counted in units that hold it."""

    held: tuple[Flags, ...]
    at: tuple[int, ...]


def sizes_of(spaces: Spaces) -> Sizes:
    """Copies and units of every space; of one inside the units of another, the copies in each unit."""
    found = {key: (s.copies, s.n) for key, s in spaces.all.items()}
    for kids in spaces.inside.values():
        found |= {kid.symmetry.space.id: (kid.owned.shape[1], kid.symmetry.n) for kid in kids}
    return found


def spots_of(spaces: Spaces, sizes: Sizes, name: str, axis: int, length: int) -> list[Spot]:
    """Every position of an axis of one model by the spaces that hold it; UnequalError if that cannot be told by one of them."""
    held: list[list[tuple[Flags, tuple[int, int]]]] = [[] for _ in range(length)]
    for key, place in spaces.at.get(name, ()):
        if place.axis != axis:
            continue
        numbers, flags = (
            _numbers(spaces, sizes, key),
            (key, place.inverse, place.order_only, place.batch_axis is not None),
        )
        for c, units in enumerate(place.positions[: 1 if flags[3] else None].tolist()):
            for u, at in enumerate(units):
                for p in at:
                    held[p].append((flags, (0 if flags[3] else numbers[c], u)))
    found = []
    for own in held:
        own.sort(key=lambda one: (spaces.root_of(one[0][0]) != one[0][0], one[0]))  # roots before what lies inside them
        roots = [flags[0] for flags, _ in own if spaces.root_of(flags[0]) == flags[0]]
        outside = [key for (key, *_), _ in own if spaces.root_of(key) not in (key, *roots)]
        if len(own) > 1 and (len(roots) > 1 or outside or (not roots and len(own) > 1)):
            raise UnequalError(f"aligned: units along axis {axis} of {name} belong to several spaces at once")
        found.append(Spot(tuple(flags for flags, _ in own), tuple(n for _, both in own for n in both)))
    return found


def _numbers(spaces: Spaces, sizes: Sizes, key: str) -> list[int]:
    """Of every copy of a space: its number, or that within the unit that holds it."""
    parent = spaces.root_of(key)
    if parent == key:
        return list(range(sizes[key][0]))
    owned = next(kid.owned for kid in spaces.inside[parent] if kid.symmetry.space.id == key)
    found = [0] * owned.numel()
    for row in owned.tolist():
        for j, copy in enumerate(row):
            found[copy] = j
    return found


def ranks_of(spots: Sequence[Spot]) -> list[int]:
    """The how manyth of its like every position is."""
    ranks = [0] * len(spots)
    order = sorted(range(len(spots)), key=lambda i: (spots[i], i))
    for _, alike in groupby(order, key=lambda i: spots[i]):
        for rank, i in enumerate(alike):
            ranks[i] = rank
    return ranks
