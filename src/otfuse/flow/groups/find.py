"""Largest exact groups: the story. Slots, folds, kinds, and the joint gate, which has the last word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from otfuse.core.space import Group
from otfuse.core.symmetry import Kind, Symmetry
from otfuse.errors import UsageError
from otfuse.flow.groups.canonical import CanonicalWeights, Fold
from otfuse.flow.groups.element import cheap
from otfuse.flow.groups.folds import candidates
from otfuse.flow.groups.kinds import largest
from otfuse.flow.groups.slots import key_places, slots
from otfuse.flow.groups.tried import EXACT, PATIENCE, Bench, moved
from otfuse.flow.proof.drawn import redrawn
from otfuse.program.lockstep import Variant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from otfuse.core.graph import FlowGraph
    from otfuse.flow.groups.element import Element
    from otfuse.program.export import Program


class Modelled(Protocol):
    """A model as its program, its flow graph, and its stored tensors (``measure.probe.Side``)."""

    @property
    def program(self) -> Program:
        """What it computes."""

    @property
    def few(self) -> Callable[[], Program] | None:
        """Makes the same program on a few examples, where it was traced on many."""

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
    """The largest exact group of every space of a model, on its canonical form (docs/method.md, 4.3).

    ``CanonicalWeights(side.weights, folds, side.graph.ties)`` is that form. Everything is tried on weights drawn anew, so
    that nothing passes because a gain is still one, and held to on the real ones; an element changes the outputs by less than
    1e-9, relative, in float64. With ``groups="permutation"``, and where the weights cannot be run (the meta device), nothing is folded,
    and the groups are those of the spaces.
    """
    if groups not in ("full", "permutation"):
        raise UsageError(f"groups {groups!r}: allowed are 'full' and 'permutation'")
    found = _as_derived(side.graph)
    plain = [symmetry for symmetry in found if symmetry.kind is Kind.PERMUTATION]
    if groups == "permutation":
        return Symmetries(plain, (), ())
    told = "groups are permutations only: "
    if any(side.weights[name].is_meta for name in _smallest(side.graph)):
        return Symmetries(plain, (), (f"{told}the weights are on the meta device and cannot be run",))
    try:
        return _Search(side, seed).run(found)
    except (RuntimeError, NotImplementedError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        return Symmetries(plain, (), (f"{told}the model cannot run in float64 ({line})",))


def with_exact(graph: FlowGraph, found: Symmetries) -> FlowGraph:
    """The graph with the largest exact group named beside that of every space, and what was left out among its notes."""
    kinds = {symmetry.space.id: str(symmetry.kind) for symmetry in found.found}
    spaces = tuple(replace(space, exact=kinds.get(space.id)) for space in graph.spaces)
    return replace(graph, spaces=spaces, notes=(*graph.notes, *found.notes))


def with_groups(graph: FlowGraph, found: Symmetries) -> FlowGraph:
    """The same, and that group is the group of the space."""
    named = with_exact(graph, found)
    spaces = (replace(s, group=Kind(s.exact).group) if s.exact else s for s in named.spaces)
    return replace(named, spaces=tuple(spaces))


class EqualWeights(Mapping[str, torch.Tensor]):
    """Tensors by first name, in float64, of a model that computes the same: an element of every symmetry on the canonical form.

    Each is made when it is asked for, and not kept.
    """

    def __init__(
        self,
        base: Mapping[str, torch.Tensor],
        found: Symmetries,
        ties: Mapping[str, str],
        elements: Sequence[Element],
    ) -> None:
        self._canonical = CanonicalWeights(base, found.folds, ties)
        self._names = [name for name, first in ties.items() if name == first]
        self._acting: dict[str, list[Element]] = {}
        for element in elements:
            for name in dict.fromkeys(slot.tensor for slot in element.symmetry.slots):
                self._acting.setdefault(name, []).append(element)
        self.moved = frozenset({*self._acting, *(name for fold in found.folds for name in fold.changes)})

    def made(self, name: str, own: torch.Tensor | None = None) -> torch.Tensor:
        """The tensor of that name; ``own`` is what the base gives for it, where it was read before."""
        tensor = self._canonical.exact(name, own)
        for element in self._acting.get(name, ()):
            tensor = element(name, tensor)
        return tensor

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.made(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _as_derived(graph: FlowGraph) -> list[Symmetry]:
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
        program = side.program if side.few is None else side.few()
        self._graph, self._program, self._seed = side.graph, program, seed
        self._benches = [Bench(program, base, seed) for base in (redrawn(program, side.weights, seed), side.weights)]
        self.notes: list[str] = []

    def run(self, plain: Sequence[Symmetry]) -> Symmetries:
        """Folds, then kinds, then all of it at once."""
        folds = self._folds()
        drawn = self._benches[0]
        bench = replace(drawn, weights=CanonicalWeights(drawn.weights, folds, self._graph.ties))
        found = list[Symmetry]()
        for each in (False, True):
            kinds = largest(bench, self._graph, plain, self._seed, each=each)
            found = [symmetry for symmetry in kinds if symmetry is not None]
            if self._joint(found, folds):
                break
        else:
            found = self._narrowed(found, folds)
        turned = {symmetry.space.id for symmetry in found}
        for symmetry in plain:
            if symmetry.space.id not in turned:
                name = symmetry.space.name
                self.notes.append(f"{name}: its pairs turn, but no complex numbers do; it stays as it is")
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
        """Whether random elements of all groups at once, after all folds, leave the outputs in place, on either bench.

        Permutations are left out: that they hold is the law of a graph.
        """
        elements = [cheap(s, self._seed + 1) for s in found if s.kind is not Kind.PERMUTATION]
        together = Symmetries(list(found), tuple(folds), ())
        equal = [EqualWeights(bench.weights, together, self._graph.ties, elements) for bench in self._benches]
        variants = [Variant(one.moved, one.made, late=True) for one in equal]
        return all(b.gaps([v])[0] < EXACT for b, v in zip(self._benches, variants, strict=True))

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
