"""Where the descent starts: each space from the tables that only it and spaces already placed touch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from otfuse.align.descent import best
from otfuse.align.elements import Dense
from otfuse.core.symmetry import Kind

if TYPE_CHECKING:
    from otfuse.align.compared import Problem, State
    from otfuse.align.descent import Descent
    from otfuse.align.elements import Place
    from otfuse.core.symmetry import Symmetry

_RANK = 1e-8  # of the largest singular value
_STEPS, _STILL = 50, 1e-7
_ROTATIONS = (Kind.ORTHOGONAL, Kind.ORTHOGONAL_ONES)


def outward(descent: Descent, state: State) -> State:
    """Spaces one after another, next the one of which the tables known by then tell most (numbers per unit).

    In a transformer first the stream, from embeddings and head, then all else; in a chain of convolutions from input to
    output. A rotation that its tables leave partly open (fewer rows than units) is completed from the Gram matrices of the
    others, which no map of the spaces still open changes.
    """
    problem, spaces = descent.problem, descent.spaces
    columns = _columns(problem)
    open_roots = {root.space.id: root for root in descent.roots}
    while open_roots:
        known = {key: _known(problem, key, frozenset(open_roots)) for key in open_roots}

        def told(key: str, known: dict[str, frozenset[Place]] = known) -> tuple[float, float]:
            own = [spaces.all[k] for k in (key, *(kid.symmetry.space.id for kid in spaces.inside.get(key, ())))]
            rows = [
                [sum(columns[p] for p in spaces.places[s.space.id] if p in some) for s in own]
                for some in (known[key], columns)
            ]
            enough = min(min(1.0, count / s.n) for count, s in zip(rows[0], own, strict=True))
            return enough, sum(rows[0]) / max(sum(rows[1]), 1)

        key = max(open_roots, key=told)
        root = open_roots.pop(key)
        if root.kind in _ROTATIONS and root.copies == 1 and key not in spaces.inside:
            state = state | {key: _rotation(problem, root, state, known[key])}
        else:
            state, _ = descent.step(root, state, known[key] or None)
    return state


def _known(problem: Problem, key: str, unplaced: frozenset[str]) -> frozenset[Place]:
    """Places of a space in tables that no other open root touches."""
    spaces = problem.spaces
    found = set()
    for own in {key, *(k.symmetry.space.id for k in spaces.inside.get(key, ()))}:
        for place in spaces.places[own]:
            roots = {spaces.root_of(other) for other, _ in spaces.at[place.tensor]}
            if not (roots - {key}) & unplaced:
                found.add(place)
    return frozenset(found)


def _columns(problem: Problem) -> dict[Place, int]:
    """For every place, how many numbers tell its units apart: none where all units have the same (gains of one)."""
    found: dict[Place, int] = {}
    every = frozenset(problem.spaces.all)
    for name in (n for n in problem.names if n in problem.spaces.at):
        for _, part in problem.tables([name], {}, skip=every):
            for _, place in problem.spaces.at[name]:
                found[place] = found.get(place, 0) + part.columns(place)
    return found


def _rotation(problem: Problem, root: Symmetry, state: State, known: frozenset[Place]) -> Dense:
    """The rotation by the tables in ``known``; what they leave open by Gram matrices, ``M <- best(sum A M B)``, which climbs."""
    key, n = root.space.id, root.n
    first, _ = problem.cross(root, state, known) if known else (torch.zeros(1, n, n, dtype=torch.float64), None)
    u, values, v = torch.linalg.svd(first[0])
    rank = int((values > _RANK * values[0]).sum()) if bool(values[0] > 0) else 0
    if rank >= n - 1:
        return _placed(root, first, state)
    grams = list(_grams(problem, root, known))
    if not grams or not rank:
        return _placed(root, first, state)
    now, before = (u[:, :rank] @ v[:rank])[None], None
    for _ in range(_STEPS):
        total = first / values.sum() + sum(a @ now @ b for a, b in grams) / len(grams)
        found = best(root, total, torch.zeros_like(total)).dense()
        if before is not None and float((found - before).norm()) < _STILL:
            break
        now = before = found
    return Dense(found, found).after(state[key])  # type: ignore[return-value]


def _placed(root: Symmetry, cross: torch.Tensor, state: State) -> Dense:
    return best(root, cross, torch.zeros_like(cross)).after(state[root.space.id])  # type: ignore[return-value]


def _grams(problem: Problem, root: Symmetry, known: frozenset[Place]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of every table that touches the space once and is not in ``known``: both models', scaled to a trace of one."""
    key = root.space.id
    crossing = problem.spaces.crossing(key)
    found = []
    for place in problem.spaces.places[key]:
        if place in known or place.tensor in crossing or place.order_only:
            continue
        both: list[torch.Tensor] | None = None
        for part in (p for _, p in problem.tables([place.tensor], {}, skip=frozenset(problem.spaces.all))):
            grams = part.grams(place)
            if grams is None:
                return []
            both = [x + y for x, y in zip(both, grams, strict=True)] if both else list(grams)
        if both and all(float(g.norm()) > 0 for g in both):
            found.append((both[0] / both[0].norm(), both[1] / both[1].norm()))
    return found
