"""Scheme ``aligned``: one map per space, from the group that leaves the source's function as it is.

Objective: the squared distance between the anchor's tensors and the carried source's, both canonical (norms folded into
what reads them) and balanced (both sides of invertible maps equally large), so that every exact map keeps lengths; tensors
count by a power of their length (``evenness``).
``descent`` makes it small one space at a time, from the start that ``starts`` finds. Maps are relative: the anchor stays in
its own basis. With ``features: activations`` the same is done on cross moments of the nodes' units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING

import torch

from otfuse.align.balance import Balanced
from otfuse.align.canonical import Canonical, canonical, cosines, equal
from otfuse.align.carries import carries
from otfuse.align.descent import Descent, softened
from otfuse.align.elements import Monomial, carried
from otfuse.align.frame import Unframed
from otfuse.align.near import price, rotated
from otfuse.align.several import AmongMoments, AmongTensors
from otfuse.align.spaces import Spaces
from otfuse.align.starts import outward
from otfuse.core.alignment import SpaceReport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from otfuse.align.compared import State
    from otfuse.align.elements import Element
    from otfuse.align.matrix import Matrix
    from otfuse.align.several import Among
    from otfuse.core.dataset import Dataset
    from otfuse.core.options import Aligned
    from otfuse.core.symmetry import Symmetry
    from otfuse.measure.probe import Side
    from otfuse.program.weights import Weights

    Tell = Callable[[str, int, int], None]  # stage, done, of how many

LIKE, STAYING = 0.5, 0.9  # cosine of weights, and share of units that stay, from which models share a start
_SWEEPS = 20
_STILL = 1e-4
_NEARER = 0.99  # of what the exact group leaves between models; a larger group must leave less


@dataclass(slots=True, eq=False)
class _Source:
    """One source on its way: its maps between balanced models, and what the report tells."""

    state: State
    cosine: dict[str, float]
    trail: tuple[float, ...]
    converged: bool
    shared: bool


class Aligner:
    """Aligns all sources of a fusion to the anchor, and from three models on each to what the others make together.

    ``weights`` are those of the mix, anchor first. ``fixed`` are maps of sources between balanced models that are held as
    they are given, by space id; tensors ``aside`` are not looked at.
    """

    def __init__(
        self,
        sides: Sequence[Side],
        options: Aligned,
        weights: Sequence[float],
        data: Dataset | None = None,
        *,
        aside: frozenset[str] = frozenset(),
        fixed: Mapping[str, Element] | None = None,
        tell: Tell | None = None,
    ) -> None:
        self._sides, self._options, self._shares, self._data, self._tell = sides, options, tuple(weights), data, tell
        self._fixed, graph = dict(fixed or {}), sides[0].graph
        self.spreads: list[float] = []  # of all models about their mean, from three on, sweep by sweep
        self._sources: list[_Source] = []
        self._told: list[str] = []
        self.names = tuple(n for n, first in graph.ties.items() if n == first and n not in aside)
        likeness, shared = [dict[str, float]() for _ in sides[1:]], [False for _ in sides[1:]]
        if equal(sides):  # models of other widths share no start
            self._take(canonical(sides, "permutation"))  # costs nothing, and is enough to see a common start
            likeness = [cosines(self.spaces, sides[0].weights, side.weights) for side in sides[1:]]
            shared = [self._is_shared(k, own) for k, own in enumerate(likeness, 1)]
        self.shared = all(shared)
        if not self.shared:
            self._take(canonical(sides, options.groups))
        told = list(zip(likeness, shared, strict=True))
        self._solve(told)
        if options.tolerance and options.groups == "full" and equal(sides) and not self.shared:
            self._widen(told)
        if options.softness and not self.shared:
            for k, source in enumerate(self._sources, 1):
                source.state = softened(self._tensors.against(k, [0], {}), source.state, options.softness)

    def _solve(self, told: Sequence[tuple[dict[str, float], bool]]) -> None:
        """All sources, one by one and then together; by what nodes compute first, where that is asked for."""
        among: Among = self._tensors
        if self._options.features == "activations" and not self.shared:
            assert self._data is not None  # the recipe was checked
            among = AmongMoments(
                self._balanced(), self.spaces, self._shares, self._data, self._telling("measure"), self.form.frame
            )
        self._sources = []
        self._sources = [self._aligned(among, k, *own) for k, own in enumerate(told, 1)]
        self.spreads = self._together(among)
        if isinstance(among, AmongMoments) and among.seen != set(self.spaces.all):
            self._complete(among.seen)

    def _balanced(self) -> list[Side]:
        """All models with canonical, balanced weights, each in its own sizes."""
        found, frame = [model.whole() for model in self._models], self.form.frame
        if frame is not None:
            found = [Unframed(own, frame, k, self.spaces) for k, own in enumerate(found)]
        return [replace(side, weights=own) for side, own in zip(self._sides, found, strict=True)]

    def _widen(self, told: Sequence[tuple[dict[str, float], bool]]) -> None:
        """Rotations of streams that do not tolerate them exactly, kept if no carried source loses more than the tolerance."""
        form, sources, spreads, exact = self.form, self._sources, self.spreads, self._apart()
        wide, names = rotated(form.found)
        if not names:
            return
        self._take(replace(form, found=wide))
        self._solve(told)
        if self._apart() < _NEARER * exact:  # a copy comes back exactly by the exact group
            pairs = enumerate(zip(self._sides[1:], self.form.weights[1:], strict=True))
            worst = max(price(side, own, self.spaces, self.maps(k), self._data) for k, (side, own) in pairs)
            what = f"{', '.join(names)}: rotated, which is no exact symmetry here, carried sources alone lose {worst:.2g} nats at most"
            if worst <= self._options.tolerance:
                self._told.append(what)
                return
            self._told.append(
                f"{what}, more than aligned.tolerance {self._options.tolerance:g}; the exact group is used"
            )
        self._take(form)
        self._sources, self.spreads = sources, spreads

    def _apart(self) -> float:
        """What all descents have left."""
        return self.spreads[-1] if self.spreads else sum(source.trail[-1] for source in self._sources)

    def _take(self, form: Canonical) -> None:
        """One canonical form of all models, its spaces, and their balanced tensors."""
        self.form, self.spaces = form, Spaces(form.found)
        read = [name for name in self.names if name in self.spaces.at]
        self._models = [Balanced(own, read, form.shapes, self.spaces) for own in form.weights]
        squares = [m.squares(f"source {k}" if k else "the anchor") for k, m in enumerate(self._models)]
        scales = _scales(squares, self._options.evenness)
        for model in self._models:
            model.scales = scales
            model.forget()
        lengths = [sum(scales[n] ** 2 * square for n, square in own.items()) for own in squares]
        self._tensors = AmongTensors(self._models, self.spaces, self._shares, lengths)

    def maps(self, number: int) -> State:
        """The elements that carry source ``number`` (from 0) in the anchor's own basis, by space id."""
        state, anchor, source = self._sources[number].state, self._models[0].elements, self._models[number + 1].elements
        if self._sources[number].shared:
            return state
        found: State = {}
        for key, element in state.items():
            if key in source:
                first, parent = source[key], self.spaces.root_of(key)
                if parent != key and isinstance(order := state[parent], Monomial):
                    kid = next(k for k in self.spaces.inside[parent] if k.symmetry.space.id == key)
                    first = kid.follow(first, order.order)
                element = element.after(first)
            if key in anchor:
                element = anchor[key].inverse().after(element)
            found[key] = element
        return found

    def carried(self) -> tuple[tuple[dict[str, torch.Tensor], ...], tuple[Symmetry, ...]]:
        """The canonical tensors of all models in the anchor's basis, in memory, anchor first; the groups that hold in all."""
        form = canonical(self._sides, self._options.groups) if self.shared else self.form
        found, frame = [{name: form.own[0][name] for name in self.names}], form.frame
        for k, own in enumerate(form.weights[1:]):
            maps = {} if self.shared else self.maps(k)
            moves = {
                name: [(place, maps[key]) for key, place in self.spaces.at.get(name, ()) if key in maps]
                for name in self.names
            }
            made = {name: carried(own[name].double(), moves[name]).to(own[name].dtype) for name in self.names}
            found.append(made if frame is None else {name: frame.taken(name, own) for name, own in made.items()})
        return tuple(found), form.found if frame is None else frame.own

    @property
    def unequal(self) -> bool:
        """Whether widths differ, so that carried sources have other sizes than the models they come from."""
        return self.form.frame is not None

    def joins(self, number: int) -> tuple[Weights, Callable[[str, int], Matrix | None]]:
        """Where widths differ, of source ``number``: its canonical tensors in its own sizes; the map of one axis of a tensor.

        That is ``[anchor positions, the source's]``, None where positions stay as they are.
        """
        frame, maps = self.form.frame, self.maps(number)
        assert frame is not None  # asked for then only

        def joined(name: str, axis: int) -> Matrix | None:
            moves = frame.first(name, number + 1, self.spaces)
            moves += [(place, maps[key]) for key, place in self.spaces.at.get(name, ()) if key in maps]
            return frame.joined(name, axis, carries(name, self.form.shapes[name], moves), number + 1)

        return self.form.own[number + 1], joined

    # -- one source --------------------------------------------------------------------------------------------------
    def _is_shared(self, k: int, likeness: Mapping[str, float]) -> bool:
        """Whether a source shares a start with the anchor: weights alike in every space, and its units best left where they are."""
        descent = self._descent(self._tensors, k)
        alike = likeness and min(likeness.values()) >= LIKE and not self._fixed
        return bool(alike) and self._stay(descent, descent.identity())

    def _descent(
        self, among: Among, k: int, others: Sequence[int] = (0,), fixed: frozenset[str] = frozenset()
    ) -> Descent:
        problem = among.against(k, others, self._states())
        return Descent(problem, among.squares(k), frozenset(self._fixed) | fixed, self._telling("align"))

    def _states(self) -> dict[int, State]:
        return {k: source.state for k, source in enumerate(self._sources, 1)}

    def _telling(self, stage: str) -> Callable[[int, int], None] | None:
        return None if self._tell is None else partial(self._tell, stage)

    def _aligned(self, among: Among, k: int, likeness: dict[str, float], shared: bool) -> _Source:  # noqa: FBT001
        descent = self._descent(self._tensors if shared else among, k)
        start = descent.identity() | self._fixed
        if shared:
            return _Source(
                start, likeness, (descent.distance(descent.problem.inner(start)),), converged=True, shared=True
            )
        starts = [outward(descent, start)]
        if likeness and min(likeness.values()) >= LIKE:
            starts.append(start)
        found = min((descent.run(own) for own in starts), key=lambda f: f.trail[-1])
        return _Source(found.state, likeness, found.trail, found.converged, shared=False)

    def _complete(self, seen: frozenset[str]) -> None:
        """Spaces that no node shows, by their weights, now that the others are known."""
        for k, source in enumerate(self._sources, 1):
            if not source.shared:
                rest = self._descent(self._tensors, k, fixed=seen)
                source.state = rest.run(outward(rest, source.state)).state
        self._together(self._tensors, seen)

    def _stay(self, descent: Descent, start: State) -> bool:
        """Whether the units of every space that is assigned stay in place, nearly all."""
        for root in descent.roots:
            state, _ = descent.step(root, start)
            for key in (root.space.id, *(kid.symmetry.space.id for kid in self.spaces.inside.get(root.space.id, ()))):
                element, before = state[key], start[key]
                if isinstance(element, Monomial) and isinstance(before, Monomial):
                    staying = (element.order == before.order).double().mean()
                    if float(staying) < STAYING:
                        return False
        return True

    # -- several sources -----------------------------------------------------------------------------------------------
    def _together(self, among: Among, fixed: frozenset[str] = frozenset()) -> list[float]:
        """Each source to the mean of the others, in turn (nearest to the anchor first), while their spread falls: its trail.

        The spread ``sum_ij w_i w_j |C_i - C_j|^2`` never grows: each step is a descent on the part of it that one source has.
        """
        order = sorted(range(1, len(self._sides)), key=lambda k: self._sources[k - 1].trail[-1])
        order = [k for k in order if self._shares[k] > 0 and not self._sources[k - 1].shared]
        if len(self._sources) == 1 or not order:
            return []
        spreads = [among.spread(self._states())]
        for _ in range(_SWEEPS):
            for k in order:
                if others := [i for i in (0, *order) if i != k and self._shares[i] > 0]:
                    source = self._sources[k - 1]
                    source.state = self._descent(among, k, others, fixed).run(source.state, rounds=2).state
            spreads.append(among.spread(self._states()))
            if spreads[-2] - spreads[-1] <= _STILL * spreads[-2]:
                break
        return spreads

    # -- what the report tells -------------------------------------------------------------------------------------------
    def reports(self, number: int) -> tuple[SpaceReport, ...]:
        """Per space the squared distance of the tensors that it touches, as a share of the anchor's, before and after."""
        source, k = self._sources[number], number + 1
        problem = self._tensors.against(k, [0], {})
        ends: list[dict[str, float]] = []
        identity = Descent(problem, (1.0, 1.0)).identity()
        for state in (identity, source.state):
            ends.append(dict.fromkeys(problem.names, 0.0))
            for name, part in problem.tables(problem.names, state):
                ends[-1][name] += part.distance()
        sizes = {name: sum(float(p.square().sum()) for p in self._models[0].parts(name)) for name in problem.names}
        found = []
        for key, symmetry in self.spaces.all.items():
            own = {place.tensor for place in self.spaces.places[key]} & set(problem.names)
            size = sum(sizes[name] for name in own) or 1.0
            before, after = (sum(end[name] for name in own) / size for end in ends)
            method = "shared start" if source.shared else str(symmetry.kind)
            found.append(
                SpaceReport(
                    symmetry.space.name, method, self._units(symmetry, k), before, after, source.converged, 0.0,
                    len(source.trail), (key,), cosine=source.cosine.get(key),
                )
            )  # fmt: skip
        return tuple(found)

    def _units(self, symmetry: Symmetry, k: int) -> tuple[int, int]:
        frame = self.form.frame
        return (symmetry.n, symmetry.n) if frame is None else frame.units(symmetry.space.id, k)

    def notes(self, number: int) -> tuple[str, ...]:
        """What else is to be told of one source."""
        source, told = self._sources[number], list[str]()
        if number == 0 and not self.shared:  # of all sources
            told += [*self.form.notes, *self._told]
            told += [
                f"{name}: one side of it leaves directions unused, so it is only rotated, and a copy in another basis does not come back"
                for name in dict.fromkeys(name for model in self._models for name in model.deficient)
            ]
        if self.form.frame is not None and (sizes := self.form.frame.told(number + 1)):
            told.append(
                f"source {number + 1} has other sizes than the anchor ({sizes} units): where it has more, what the maps cannot keep is "
                "left behind; where it has fewer, the others are zero in it"
            )
        if source.shared:
            least = min(source.cosine.values())
            told.append(
                f"source {number + 1} shares a start with the anchor (cosine of weights at least {least:.2f} in every space): its units stay where they are"
            )
        return tuple(told)


def _scales(squares: Sequence[Mapping[str, float]], evenness: float) -> dict[str, float]:
    """What every tensor is multiplied by where it is compared: its length (geometric mean of all models) to the power ``-evenness``."""
    scales = {}
    for name in squares[0]:
        own = [square[name] for square in squares if square[name] > 0]
        scales[name] = prod(square ** (-evenness / (2 * len(own))) for square in own)
    return scales
