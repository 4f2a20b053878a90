"""The largest group of every space, from trials of few generators each.

What leaves the outputs in place is a group. A space that tolerates permutations tolerates more by three generators alone:
one sign turned, positive factors, and a reflection that fixes the all-ones. With permutations the reflection generates
every orthogonal map that fixes the ones; with signs as well, all orthogonal ones; with factors as well, all invertible ones.
Where a space stands in a product, one factor may be linear: then factors act on that alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

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


@dataclass(frozen=True, slots=True)
class _Answer:
    """The kind found (None: pairs that turn by no complex number), and which slots take only the order of an element."""

    kind: Kind | None
    order_only: tuple[bool, ...]

    def of(self, symmetry: Symmetry) -> Symmetry | None:
        """A symmetry with slots alike, as this answer has it."""
        if self.kind is None:
            return None
        told = zip(symmetry.slots, self.order_only, strict=True)
        return replace(symmetry, kind=self.kind, slots=tuple(replace(slot, order_only=only) for slot, only in told))


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """An element tried for a symmetry, and the symmetry that it stands for."""

    at: int
    asked: Symmetry
    element: Element


def largest(
    bench: Bench, graph: FlowGraph, found: Sequence[Symmetry], seed: int, *, each: bool = False
) -> list[Symmetry | None]:
    """The symmetries given (permutations and turns), each with the largest kind whose generators hold; None for no turn.

    Of those alike (the same layer again and again) the first and the last answer for all if they agree, unless ``each``: then
    a trial of all at once, which has to follow, tells whether that was right.
    """
    alike: dict[object, list[int]] = {}
    for at, symmetry in enumerate(found):
        alike.setdefault(at if each else _form(graph, symmetry), []).append(at)
    asked = sorted({at for group in alike.values() for at in (group[0], group[-1])})
    answers = _answers(bench, graph, found, asked, seed)
    rest = list[int]()
    for group in alike.values():
        if answers[group[0]] == answers[group[-1]]:
            answers |= dict.fromkeys(group, answers[group[0]])
        else:
            rest += group[1:-1]
    answers |= _answers(bench, graph, found, rest, seed)
    return [answers[at].of(symmetry) for at, symmetry in enumerate(found)]


def _form(graph: FlowGraph, symmetry: Symmetry) -> object:
    """What spaces have in common that are the same in another layer."""
    places = tuple(
        (
            s.axis,
            s.inverse,
            s.order_only,
            s.batch_axis,
            graph.shapes[s.tensor],
            int(s.positions[0, 0]),
            int(s.positions[-1, -1]),
        )
        for s in symmetry.slots
    )
    return symmetry.space.kind, symmetry.kind, symmetry.copies, symmetry.n, places


def _answers(
    bench: Bench, graph: FlowGraph, found: Sequence[Symmetry], asked: Sequence[int], seed: int
) -> dict[int, _Answer]:
    trials = [t for at in asked for t in _trials(graph, at, found[at], seed)]
    gaps = bench.gaps([moved([t.element], i) for i, t in enumerate(trials)])
    held: dict[int, list[Symmetry]] = {at: [] for at in asked}
    for trial, gap in zip(trials, gaps, strict=True):
        if gap < EXACT:
            held[trial.at].append(trial.asked)
    joined = {at: _joined(found[at], held[at]) for at in asked}
    return {
        at: _Answer(s.kind, tuple(x.order_only for x in s.slots)) if s else _Answer(None, ())
        for at, s in joined.items()
    }


def _trials(graph: FlowGraph, at: int, symmetry: Symmetry, seed: int) -> list[_Trial]:
    if symmetry.kind is Kind.TURN:
        return [_Trial(at, symmetry, cheap(symmetry, seed))]
    if symmetry.space.kind in _WHOLE:
        return []
    asked, few = {kind: replace(symmetry, kind=kind) for kind in Kind}, _few(symmetry)
    found = [_Trial(at, asked[kind], Element(asked[kind], factors=few[kind])) for kind in (Kind.SIGNS, Kind.POSITIVE)]
    if symmetry.n > 1:
        kind = Kind.ORTHOGONAL_ONES if symmetry.n > 2 else Kind.ORTHOGONAL
        found.append(_Trial(at, asked[kind], Element(asked[kind], normal=reflection(asked[kind], seed))))
    for linear in factors(graph, tuple(symmetry.slots)):
        slots = tuple(
            replace(slot, order_only=slot.order_only or (not slot.inverse and i not in linear))
            for i, slot in enumerate(symmetry.slots)
        )
        partly = replace(symmetry, kind=Kind.SCALING, slots=slots)
        found.append(_Trial(at, partly, Element(partly, factors=few[Kind.SIGNS] * few[Kind.POSITIVE])))
    return found


def _few(symmetry: Symmetry) -> dict[Kind, torch.Tensor]:
    """Factors ``[copies, n]`` of the first and the last unit: of every copy's own, so that none is like all of them."""
    copies, size = symmetry.copies, symmetry.n
    signs, sizes = torch.ones(2, copies, size, dtype=torch.float64)
    signs[:, 0] = -1
    sizes[:, 0] = torch.linspace(1.5, 2.5, copies, dtype=torch.float64)
    if size > 2:
        signs[1::2, -1] = -1  # two signs of every second copy
        sizes[:, -1] = torch.linspace(0.4, 0.9, copies, dtype=torch.float64)
    return {Kind.SIGNS: signs, Kind.POSITIVE: sizes}


def _joined(symmetry: Symmetry, held: Sequence[Symmetry]) -> Symmetry | None:
    """The symmetry with the largest group that what held generates with the permutations."""
    if symmetry.kind is Kind.TURN:
        return symmetry if held else None
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
