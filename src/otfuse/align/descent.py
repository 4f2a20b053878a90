"""Block coordinate descent: one space at a time, each by the closed form of its group, never further from the anchor.

The objective is the squared distance between the anchor's tables and the carried source's. Maps keep lengths, so it falls as
their inner product grows, which is what the steps work with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from otfuse.align.compared import as_coupling
from otfuse.align.elements import Dense, Monomial, identity, stays
from otfuse.align.spaces import overlap
from otfuse.core.symmetry import Kind
from otfuse.solve import procrustes
from otfuse.solve.sinkhorn import sinkhorn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otfuse.align.compared import Problem, State
    from otfuse.align.elements import Element, Place
    from otfuse.align.spaces import Nested
    from otfuse.core.symmetry import Symmetry

ROUNDS, TOLERANCE = 50, 1e-3  # on three digits pairs 1e-4 cost twice the rounds and was no better
USUAL = 10  # rounds that a descent takes with its start, counted on digits and on the examples: 4 to 9


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Maps by space id, the squared distance after every round (the first: before any) and whether it stopped by itself."""

    state: State
    trail: tuple[float, ...]
    converged: bool
    gained: float = 0.0  # what the inner product grew by


class Descent:
    """One source and one target. ``squares`` are the squared lengths of both; spaces in ``fixed`` keep the map they start with.

    ``tell`` hears after every space how many were solved, and how many it usually takes.
    """

    def __init__(
        self,
        problem: Problem,
        squares: tuple[float, float],
        fixed: frozenset[str] = frozenset(),
        tell: Callable[[int, int], None] | None = None,
    ) -> None:
        self.problem, self.spaces = problem, problem.spaces
        self._square, self._fixed, self._tell, self._solved = squares, fixed, tell, 0
        self._noise = problem.noise * (squares[0] * squares[1]) ** 0.5
        self._settled, self._passed = set[str](), False  # whole units that stayed; whether any were passed over since
        roots = [s for s in self.spaces.roots if not self._held(s)]
        self.roots = sorted(roots, key=lambda s: s.space.kind == "stream")  # what all layers touch comes last

    def distance(self, inner: float) -> float:
        """The objective at an inner product."""
        return max(self._square[0] + self._square[1] - 2 * inner, 0.0)

    def identity(self) -> State:
        """Every unit to itself."""
        return {key: identity(s) for key, s in self.spaces.all.items()}

    def run(self, state: State, rounds: int = ROUNDS) -> Found:
        """Rounds over all spaces until one gains less than a share of the distance that is left.

        Whole units (heads) that stayed where they were are not compared with each other again until the rest has come to rest.
        """
        self._settled.clear()
        inner = first = self.problem.inner(state)
        trail, converged = [self.distance(inner)], False
        for _ in range(rounds):
            total, self._passed = 0.0, False
            for root in self.roots:
                state, gain = self.step(root, state)
                total += gain
            inner += total
            trail.append(self.distance(inner))
            converged = 2 * total <= TOLERANCE * trail[-1] + 2 * self._noise
            if converged and not self._passed:
                break
            if converged:
                self._settled.clear()
        return Found(state, tuple(trail), converged, inner - first)

    def step(self, root: Symmetry, state: State, only: frozenset[Place] | None = None) -> tuple[State, float]:
        """One space and what lies inside its units; the state and what the inner product grew by."""
        kids = self.spaces.inside.get(root.space.id, ())
        found = self._together(root, kids, state, only) if kids else self._alone(self.problem, root, state, only)
        self._solved += 1
        if self._tell is not None:
            self._tell(self._solved, max(self._solved, USUAL * len(self.roots)))
        return found

    def _held(self, symmetry: Symmetry) -> bool:
        kids = self.spaces.inside.get(symmetry.space.id, ())
        return {symmetry.space.id, *(k.symmetry.space.id for k in kids)} <= self._fixed

    def _alone(
        self, problem: Problem, symmetry: Symmetry, state: State, only: frozenset[Place] | None = None
    ) -> tuple[State, float]:
        key = symmetry.space.id
        if key in self._fixed:
            return state, 0.0
        signed, plain = problem.cross(symmetry, state, only)
        found = best(symmetry, signed, plain)
        trial = state | {key: found.after(state[key])}
        crossing = self.spaces.crossing(key)
        if crossing:  # there the inner product is no linear function of the map
            names = {place.tensor for place in self.spaces.places[key] if only is None or place in only}
            gain = problem.inner(trial, names) - problem.inner(state, names)
        else:
            gain = _inner(found, signed, plain) - float((signed + plain).diagonal(dim1=1, dim2=2).sum())
        return (trial, gain) if gain > self._noise else (state, 0.0)

    # -- spaces inside the units of another ----------------------------------------------------------------------------
    def _together(
        self, root: Symmetry, kids: Sequence[Nested], state: State, only: frozenset[Place] | None
    ) -> tuple[State, float]:
        """Whole units are assigned by the best that the spaces inside can do for every pair; then these once more."""
        inside = frozenset({root.space.id, *(k.symmetry.space.id for k in kids)})
        names = dict.fromkeys(
            place.tensor for key in inside for place in self.spaces.places[key] if only is None or place in only
        )
        local = self.problem.held(names, state, inside)
        before = local.inner(state)
        key, trial = root.space.id, state
        if key in self._settled:
            self._passed = True
        else:
            if not self._fixed & inside and root.n > 1:  # whoever holds what lies inside its units stays with them
                move = self._assigned(local, root, kids, state)
                trial = self.spaces.reordered(state, root, move)
                if stays(move):
                    self._settled.add(key)
            trial = self._inner(local, kids, trial, fresh=True)
            gain = local.inner(trial) - before
            if gain > self._noise:
                return trial, gain
        trial = self._inner(local, kids, state, fresh=False)
        return trial, local.inner(trial) - before

    def _assigned(self, local: Problem, root: Symmetry, kids: Sequence[Nested], state: State) -> Monomial:
        """Where every whole unit goes, and with which sign, by what each pair has in common."""
        scores = torch.stack([self._scores(local, root, kids, state, sign) for sign in _signs(root)])
        best_of, sign = scores.max(0)
        order = procrustes.assignment(best_of)
        chosen = _signs(root)[sign.gather(2, order[:, :, None])[:, :, 0]]
        return Monomial(order, chosen if bool((chosen < 0).any()) else None)

    def _scores(
        self, local: Problem, root: Symmetry, kids: Sequence[Nested], state: State, sign: torch.Tensor
    ) -> torch.Tensor:
        """``[copies, n, n]``: what each pair of units has in common at that sign, the spaces inside solved for that pair."""
        n, units = root.n, torch.arange(root.n)
        scores = torch.zeros(root.copies, n, n, dtype=torch.float64)
        for shift in range(n):  # n pairs at once
            order = (units + shift) % n
            move = Monomial(order.repeat(root.copies, 1), None if sign > 0 else sign.expand(root.copies, n))
            trial = self._inner(local, kids, self.spaces.reordered(state, root, move), fresh=True)
            scores[:, units, order] = local.diagonal(root, trial)
        return scores

    def _inner(self, local: Problem, kids: Sequence[Nested], state: State, *, fresh: bool) -> State:
        """The spaces inside, one after another; ``fresh``: each from what no other unsolved one touches, first."""
        own = {k.symmetry.space.id: local.spaces.places[k.symmetry.space.id] for k in kids}
        pure = {key: _apart(key, own) for key in own}
        ordered = sorted(kids, key=lambda k: len(pure[k.symmetry.space.id]) == 0)
        meet = any(len(pure[key]) < len(own[key]) for key in own)
        for k in ordered if fresh and meet else ():
            only = pure[k.symmetry.space.id] or None
            state, _ = self._alone(local, k.symmetry, state, only)
        for _ in range(2 if meet else 1):
            for k in ordered:
                state, _ = self._alone(local, k.symmetry, state)
        return state


def best(symmetry: Symmetry, signed: torch.Tensor, plain: torch.Tensor) -> Element:
    """The element of the group with the largest inner product: ``signed`` and ``plain`` as :meth:`Problem.cross` gives them."""
    kind = symmetry.kind
    if kind in (Kind.ORTHOGONAL, Kind.INVERTIBLE):
        return _orthogonal(procrustes.orthogonal(signed))
    if kind is Kind.ORTHOGONAL_ONES:
        return _orthogonal(procrustes.orthogonal_fixing_ones(signed, symmetry.ones))
    if kind is Kind.TURN:
        return _orthogonal(procrustes.turn(signed))
    if kind in (Kind.SIGNS, Kind.SCALING):
        order, sign = procrustes.signed_assignment(signed, plain)
        return Monomial(order, None if bool((sign > 0).all()) else sign)
    return Monomial(procrustes.assignment(signed + plain))


def softened(problem: Problem, state: State, softness: float) -> State:
    """Permutations as entropic couplings of what they were solved by, at that share of its range.

    Signs and factors stay; whole heads and other units that hold spaces of their own stay assigned.
    """
    found = dict(state)
    for key, symmetry in problem.spaces.all.items():
        if symmetry.kind.mixes or problem.spaces.inside.get(key):
            continue
        signed, plain = problem.cross(symmetry, state)
        coupling = torch.stack([_coupling(own, softness) for own in signed + plain])
        found[key] = as_coupling(coupling).after(state[key])
    return found


def _signs(root: Symmetry) -> torch.Tensor:
    """The signs that whole units may take."""
    return torch.tensor([1.0, -1.0] if root.kind in (Kind.SIGNS, Kind.SCALING) else [1.0], dtype=torch.float64)


def _apart(key: str, own: dict[str, list[Place]]) -> frozenset[Place]:
    """Places of a space that no other of these touches."""
    return frozenset(p for p in own[key] if not any(overlap(p, q) for other in own if other != key for q in own[other]))


def _orthogonal(matrix: torch.Tensor) -> Dense:
    return Dense(matrix, matrix)


def _inner(found: Element, signed: torch.Tensor, plain: torch.Tensor) -> float:
    if isinstance(found, Dense):
        return float((found.matrix * signed).sum() + (0 if found.order is None else (found.order * plain).sum()))
    chosen = [c.gather(2, found.order[:, :, None])[:, :, 0] for c in (signed, plain)]
    return float((chosen[0] if found.factor is None else chosen[0] * found.factor).sum() + chosen[1].sum())


def _coupling(gain: torch.Tensor, softness: float) -> torch.Tensor:
    span = float(gain.max() - gain.min())
    return len(gain) * sinkhorn((gain.max() - gain) / span if span > 0 else torch.zeros_like(gain), softness).mass
