"""The largest group of every space, from trials of few generators each.

What leaves the outputs in place is a group. A space that tolerates permutations tolerates more by three generators alone:
one sign turned, positive factors, and a reflection that fixes the all-ones. With permutations the reflection generates
every orthogonal map that fixes the ones; with signs as well, all orthogonal ones; with factors as well, all invertible ones.
Where a space stands in a product, one factor may be linear: then factors act on that alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from otfuse.core.symmetry import Kind
from otfuse.flow.groups.element import Element, cheap, reflection
from otfuse.flow.groups.slots import factors
from otfuse.flow.groups.tried import EXACT, moved

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otfuse.core.graph import FlowGraph
    from otfuse.core.symmetry import Symmetry
    from otfuse.flow.groups.tried import Bench

_WHOLE = ("heads", "queries", "experts")  # their units hold the units of other spaces


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """An element tried for a symmetry, and the kind that it stands for."""

    at: int
    asked: Symmetry
    element: Element


def largest(bench: Bench, graph: FlowGraph, found: Sequence[Symmetry], seed: int) -> list[Symmetry | None]:
    """The symmetries given (permutations and turns), each with the largest kind whose generators hold; None for no turn."""
    trials = [t for at, symmetry in enumerate(found) for t in _trials(graph, at, symmetry, seed)]
    gaps = bench.gaps([moved([t.element], i) for i, t in enumerate(trials)])
    held: dict[int, list[Symmetry]] = {}
    for trial, gap in zip(trials, gaps, strict=True):
        if gap < EXACT:
            held.setdefault(trial.at, []).append(trial.asked)
    turned = {at for at, symmetry in enumerate(found) if symmetry.kind is Kind.TURN}
    return [
        None if at in turned - held.keys() else symmetry if at in turned else _joined(symmetry, held.get(at, []))
        for at, symmetry in enumerate(found)
    ]


def _trials(graph: FlowGraph, at: int, symmetry: Symmetry, seed: int) -> list[_Trial]:
    if symmetry.kind is Kind.TURN:
        return [_Trial(at, symmetry, cheap(symmetry, seed))]
    if symmetry.space.kind in _WHOLE:
        return []
    asked = {kind: replace(symmetry, kind=kind) for kind in Kind}
    found = [_Trial(at, asked[kind], cheap(asked[kind], seed, moving=False)) for kind in (Kind.SIGNS, Kind.POSITIVE)]
    if symmetry.n > 1:
        kind = Kind.ORTHOGONAL_ONES if symmetry.n > 2 else Kind.ORTHOGONAL
        found.append(_Trial(at, asked[kind], Element(asked[kind], normal=reflection(asked[kind], seed))))
    for linear in factors(graph, tuple(symmetry.slots)):
        slots = tuple(
            replace(slot, order_only=slot.order_only or (not slot.inverse and i not in linear))
            for i, slot in enumerate(symmetry.slots)
        )
        partly = replace(symmetry, kind=Kind.SCALING, slots=slots)
        found.append(_Trial(at, partly, cheap(partly, seed, moving=False)))
    return found


def _joined(symmetry: Symmetry, held: Sequence[Symmetry]) -> Symmetry:
    """The symmetry with the largest group that what held generates with the permutations."""
    kinds = {s.kind for s in held if s.slots is symmetry.slots}
    linear = [s for s in held if s.slots is not symmetry.slots]
    rotates = bool(kinds & {Kind.ORTHOGONAL_ONES, Kind.ORTHOGONAL})
    signs, sizes = Kind.SIGNS in kinds, Kind.POSITIVE in kinds
    if signs and sizes and (rotates or symmetry.n == 1):
        return replace(symmetry, kind=Kind.INVERTIBLE)
    if rotates:
        return replace(symmetry, kind=Kind.ORTHOGONAL if signs else Kind.ORTHOGONAL_ONES)
    if signs and sizes:
        return replace(symmetry, kind=Kind.SCALING)
    if linear:
        return linear[0]
    kind = Kind.SIGNS if signs else Kind.POSITIVE if sizes else symmetry.kind
    return replace(symmetry, kind=kind)
