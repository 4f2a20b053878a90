"""What scheme ``aligned`` solves and costs, from shapes and spaces alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from otfuse.align.balance import HELD, precision
from otfuse.align.descent import USUAL
from otfuse.core.graph import NodeKind
from otfuse.core.space import Group

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otfuse.align.pair import Pair
    from otfuse.core.options import Aligned
    from otfuse.core.space import Space

_TOGETHER = (
    20  # further rounds of every source where there are several: ten sweeps of two (five digit classifiers took 18)
)
_TURNS = 1.5e5  # turns of an empty loop that one update of one space takes beside its products
_TRIALS = 1.5e6  # the same for the trials of groups, an operator
_WHOLE = ("heads", "queries", "experts")
_ROTATES = ("stream", "query-key", "value-output")  # kinds of spaces that may take dense maps


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes at once beside what a program takes; products in float64, passes over values, turns of Python."""

    memory: int
    double: float
    moved: float
    python: float


def problems(pair: Pair) -> list[tuple[str, int, int, str]]:
    """(name, anchor units, source units, method) of every space that is aligned; its group is found when it runs."""
    theirs = {s.id: s.size for s in pair.source.graph.spaces}
    spaces = [s for s in pair.anchor.graph.spaces if s.pinned is None]
    return [(s.name, s.size, theirs.get(s.id, s.size), "largest group") for s in spaces]


def cost(pairs: Sequence[Pair], options: Aligned, operators: int) -> Cost:
    """Of all sources: the maps of all spaces, one layer's tensors of both models, tables that are kept where they are small."""
    sources, sides = len(pairs), [pairs[0].anchor, *(pair.source for pair in pairs)]
    graph = max(
        (side.graph for side in sides), key=lambda own: sum(map(prod, own.shapes.values()))
    )  # all are as large in one frame
    free = [s for s in graph.spaces if s.pinned is None]
    sizes = {name: prod(shape) for name, shape in graph.shapes.items() if graph.ties.get(name, name) == name}
    layer = max((_layer(space, sizes) for space in free if space.kind != "stream"), default=0)
    maps = sum(_map(space) for space in free)
    largest = max((space.copies * space.size**2 for space in free), default=0)
    table = min(max(sizes.values(), default=0), 1 << 24)
    width = precision(sum(sizes.values())).itemsize
    kept = min(width * sum(sizes.values()), HELD)
    memory = 8 * (4 * maps * (sources + 1) + 4 * layer + 4 * largest + 6 * table) + kept * (sources + 1)
    memory += kept if sources > 1 and width == 8 else 0  # means of the others
    along = sum(
        2 * sizes[m.tensor] * min(s.size, graph.shapes[m.tensor][m.axis])
        for s in free
        for m in s.members
        if m.tensor in sizes
    )
    rounds = USUAL + (_TOGETHER if sources > 1 else 0)
    updates = sum(s.size if s.kind in _WHOLE else 1 for s in free)
    if options.features == "activations":
        nodes = [
            n.size
            for n in graph.nodes
            if n.observation is not None
            and n.kind in (NodeKind.NORM, NodeKind.LINEAR, NodeKind.ACTIVATION, NodeKind.PRODUCT, NodeKind.ATTENTION)
        ]
        memory += (
            8 * sum(size * size for size in nodes) * (sources * (sources + 1) // 2 + 1)
        )  # of every pair, and a mean
    return Cost(
        memory,
        3.0 * rounds * along * sources * width / 8,
        16.0 * rounds * 3 * sum(sizes.values()) * sources,
        rounds * updates * _TURNS * sources + _TRIALS * operators * (options.groups == "full"),
    )  # fmt: skip


def _layer(space: Space, sizes: dict[str, int]) -> int:
    return sum(sizes.get(name, 0) for name in {m.tensor for m in space.members})


def _map(space: Space) -> int:
    """Values of one map: an order, or a matrix where a larger group may hold."""
    if space.group is Group.ROTARY:
        return 4 * space.copies * space.size
    return space.copies * space.size * (space.size if space.kind in _ROTATES else 2)
