"""Largest exact groups: the story. Slots, folds, kinds, and the joint gate, which has the last word."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from otfuse.core.space import Group
from otfuse.core.symmetry import Kind, Symmetry
from otfuse.flow.groups.canonical import CanonicalWeights, Fold
from otfuse.flow.groups.element import Element, cheap
from otfuse.flow.groups.folds import candidates
from otfuse.flow.groups.kinds import largest
from otfuse.flow.groups.slots import key_places, slots
from otfuse.flow.groups.tried import EXACT, PATIENCE, Bench, moved
from otfuse.flow.proof.drawn import redrawn
from otfuse.program.lockstep import Variant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otfuse.core.graph import FlowGraph
    from otfuse.program.export import Program


class Modelled(Protocol):
    """A model as its program, its flow graph, and its stored tensors (``measure.probe.Side``)."""

    @property
    def program(self) -> Program:
        """What it computes."""

    @property
    def graph(self) -> FlowGraph:
        """Its spaces."""

    @property
    def weights(self) -> Mapping[str, torch.Tensor]:
        """Its stored tensors, each read when it is asked for."""


class Symmetries(NamedTuple):
    """What was found: a symmetry for every space that is not pinned, the folds that they hold after, and what was left out."""

    found: list[Symmetry]
    folds: tuple[Fold, ...]
    notes: tuple[str, ...]


def symmetries(side: Modelled, *, groups: str = "full", seed: int = 0) -> Symmetries:
    """The largest exact group of every space of a model, on its canonical form (docs/method.md, 5).

    ``CanonicalWeights(side.weights, folds, side.graph.ties)`` is that form. Everything is tried on weights drawn anew, so
    that nothing passes because a gain is still one, and held to on the real ones; an element changes the outputs by less than
    1e-9, relative, in float64. With ``groups="permutation"``, and where the weights cannot be run (the meta device), nothing is folded,
    and the groups are those of the spaces.
    """
    plain = _permutations(side.graph)
    if groups == "permutation":
        return Symmetries(plain, (), ())
    told = "groups are permutations only: "
    if any(side.weights[name].is_meta for name in _smallest(side.graph)):
        return Symmetries(plain, (), (f"{told}the weights are on the meta device and cannot be run",))
    try:
        return _Search(side, seed).run(plain)
    except (RuntimeError, NotImplementedError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        return Symmetries(plain, (), (f"{told}the model cannot run in float64 ({line})",))


def _permutations(graph: FlowGraph) -> list[Symmetry]:
    keys = key_places(graph)
    kinds = {Group.ROTARY: Kind.TURN}
    return [
        Symmetry(space, kinds.get(space.group, Kind.PERMUTATION), slots(space, keys))
        for space in graph.spaces
        if space.pinned is None
    ]


def _smallest(graph: FlowGraph) -> list[str]:
    names = [name for name, first in graph.ties.items() if name == first]
    return sorted(names, key=lambda name: len(graph.shapes[name]))[:1]


class _Search:
    """One search, on tensors drawn anew (``benches[0]``) and on the real ones (``benches[1]``)."""

    def __init__(self, side: Modelled, seed: int) -> None:
        self._graph, self._program, self._seed = side.graph, side.program, seed
        bases = (redrawn(side.program, side.weights, seed), side.weights)
        self._benches = [Bench(side.program, base, seed) for base in bases]
        self.notes: list[str] = []

    def run(self, plain: Sequence[Symmetry]) -> Symmetries:
        """Folds, then kinds, then all of it at once."""
        folds = self._folds()
        drawn = self._benches[0]
        bench = replace(drawn, weights=CanonicalWeights(drawn.weights, folds, self._graph.ties))
        kinds = largest(bench, self._graph, plain, self._seed)
        for symmetry, kind in zip(plain, kinds, strict=True):
            if kind is None:
                self.notes.append(
                    f"{symmetry.space.name}: its pairs turn, but no complex numbers do; it stays as it is"
                )
        found = [symmetry for symmetry in kinds if symmetry is not None]
        if not self._joint(found, folds):
            found = self._narrowed(found, folds)
        return Symmetries(found, folds, tuple(self.notes))

    # -- folds -------------------------------------------------------------------------------------------------------
    def _folds(self) -> tuple[Fold, ...]:
        """Of the candidates of every gain, the first that holds; each changes so little that all are tried together.

        What divides by a gain is tried on the real ones too: they may be zero.
        """
        asked, kept = candidates(self._program, self._graph), dict[str, Fold]()
        for turn in range(max(map(len, asked), default=0)):
            found = [folds[turn] for folds in asked if turn < len(folds) and folds[turn].gain not in kept]
            for number, bench in enumerate(self._benches):
                tried = [fold for fold in found if number == 0 or fold.divides]
                gaps = bench.gaps([_folded(fold, bench, i) for i, fold in enumerate(tried)])
                failed = {fold for fold, gap in zip(tried, gaps, strict=True) if not gap < EXACT}
                found = [fold for fold in found if fold not in failed]
            kept |= {fold.gain: fold for fold in found}
        return tuple(kept.values())

    # -- the gate ----------------------------------------------------------------------------------------------------
    def _joint(self, found: Sequence[Symmetry], folds: Sequence[Fold]) -> bool:
        """Whether random elements of all groups at once, after all folds, leave the outputs in place, on either bench."""
        elements = [cheap(symmetry, self._seed + 1) for symmetry in found]
        return all(bench.gaps([_all(elements, folds, bench, self._graph)])[0] < EXACT for bench in self._benches)

    def _narrowed(self, found: list[Symmetry], folds: Sequence[Fold]) -> list[Symmetry]:
        """Spaces that spoil it alone are narrowed to permutations; if that is not enough, all are."""
        drawn, real = self._benches
        spoilt = set[int]()
        for bench in (drawn, real):
            canonical = replace(bench, weights=CanonicalWeights(bench.weights, folds, self._graph.ties))
            gaps = canonical.gaps([moved([cheap(s, self._seed + 1)], i) for i, s in enumerate(found)])
            spoilt |= {i for i, gap in enumerate(gaps) if not gap < EXACT}
        narrow = [self._narrow(s) if i in spoilt else s for i, s in enumerate(found)]
        if spoilt and self._joint(narrow, folds):
            return narrow
        return [self._narrow(s) for s in found]

    def _narrow(self, symmetry: Symmetry) -> Symmetry:
        if symmetry.kind in (Kind.PERMUTATION, Kind.TURN):
            return symmetry
        name = symmetry.space.name
        self.notes.append(
            f"{name}: its group ({symmetry.kind}) is not exact beside the others; only permutations are kept"
        )
        keys = key_places(self._graph)
        return replace(symmetry, kind=Kind.PERMUTATION, slots=slots(symmetry.space, keys))


def _folded(fold: Fold, bench: Bench, trial: int) -> Variant:
    def move(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return fold.after(name, tensor, lambda other: bench.weights[other].double())

    return Variant(frozenset(fold.changes), move, trial, patience=PATIENCE, late=True)


def _all(elements: Sequence[Element], folds: Sequence[Fold], bench: Bench, graph: FlowGraph) -> Variant:
    canonical, last = CanonicalWeights(bench.weights, folds, graph.ties), moved(elements, 0, whole=True)
    names = last.names | {name for fold in folds for name in fold.changes}

    def move(name: str, _tensor: torch.Tensor) -> torch.Tensor:
        tensor = canonical.exact(name)
        return last.move(name, tensor) if name in last.names else tensor

    return Variant(names, move, late=True)
