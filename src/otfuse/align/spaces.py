"""The spaces of a model as the descent goes through them: where they act, and which lie inside a unit of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from otfuse.align.elements import Monomial, Place, places

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from otfuse.align.elements import Element
    from otfuse.core.symmetry import Symmetry


@dataclass(frozen=True, slots=True, eq=False)
class Nested:
    """A space whose copies lie inside the units of a parent: ``owned[parent units, k]`` are the copies inside each."""

    symmetry: Symmetry
    owned: torch.Tensor

    def follow(self, element: Element, order: torch.Tensor) -> Element:
        """The space's element when its parent puts units in another order, ``order[copies, n]``: it goes with them."""
        units = (order + order.shape[1] * torch.arange(len(order))[:, None]).reshape(-1)
        source = torch.empty(self.symmetry.copies, dtype=torch.int64)
        source[self.owned.reshape(-1)] = self.owned[units].reshape(-1)
        return element.taken(source)


class Spaces:
    """Symmetries with their places; ``roots`` are updated one by one, those ``inside`` a unit of a root together with it.

    An element of a space inside another is indexed by the anchor's copies, and acts after its parent's.
    """

    def __init__(self, symmetries: Iterable[Symmetry]) -> None:
        self.all = {s.space.id: s for s in symmetries}
        self.places = {key: places(s.slots) for key, s in self.all.items()}
        self.inside = _nesting(self.all, self.places)
        self._settle()

    def _settle(self) -> None:
        held = {n.symmetry.space.id for kids in self.inside.values() for n in kids}
        self.roots = [s for key, s in self.all.items() if key not in held]
        ordered = [*(s.space.id for s in self.roots), *(key for key in self.all if key in held)]
        self.at: dict[str, list[tuple[str, Place]]] = {}
        for key in ordered:
            for place in self.places[key]:
                self.at.setdefault(place.tensor, []).append((key, place))

    def elsewhere(self, where: Mapping[str, list[Place]]) -> Spaces:
        """The same spaces at other places."""
        kept = Spaces.__new__(Spaces)
        kept.all, kept.inside, kept.places = self.all, self.inside, dict(where)
        kept._settle()  # noqa: SLF001  # its own kind
        return kept

    def among(self, keys: frozenset[str]) -> Spaces:
        """Only these spaces."""
        kept = Spaces.__new__(Spaces)
        kept.all = {key: s for key, s in self.all.items() if key in keys}
        kept.places = {key: self.places[key] for key in kept.all}
        kept.inside = {key: kids for key, kids in self.inside.items() if key in keys}
        kept.roots = [s for s in self.roots if s.space.id in keys]
        kept.at = {name: [own for own in found if own[0] in keys] for name, found in self.at.items()}
        return kept

    def root_of(self, key: str) -> str:
        """The root that a space is updated with: itself, or its parent."""
        return next(
            (parent for parent, kids in self.inside.items() if any(k.symmetry.space.id == key for k in kids)), key
        )

    def reordered(self, state: Mapping[str, Element], parent: Symmetry, move: Monomial) -> dict[str, Element]:
        """The state when ``parent`` puts its units in another order, what lies inside them going along."""
        found = dict(state)
        key = parent.space.id
        found[key] = move.after(state[key])
        for kid in self.inside.get(key, ()):
            found[kid.symmetry.space.id] = kid.follow(state[kid.symmetry.space.id], move.order)
        return found

    def crossing(self, key: str) -> frozenset[str]:
        """Tensors on which the space acts along two axes at once."""
        axes: dict[str, set[int]] = {}
        for place in self.places[key]:
            axes.setdefault(place.tensor, set()).add(place.axis)
        return frozenset(name for name, own in axes.items() if len(own) > 1)


def overlap(one: Place, other: Place) -> bool:
    """Whether two places share positions of one axis."""
    if (one.tensor, one.axis) != (other.tensor, other.axis) or one.batch_axis != other.batch_axis:
        return False
    return bool(np.isin(one.positions.numpy(), other.positions.numpy()).any())


def _nesting(symmetries: Mapping[str, Symmetry], where: Mapping[str, list[Place]]) -> dict[str, list[Nested]]:
    owners = {key: _owners(where[key]) for key, s in symmetries.items() if not s.kind.mixes and s.n > 1}
    found: dict[str, dict[str, Nested]] = {}
    for key, symmetry in symmetries.items():
        for parent, own in owners.items():
            if parent != key and (nested := _inside(symmetry, where[key], symmetries[parent], own)) is not None:
                found.setdefault(key, {})[parent] = nested
    kids: dict[str, list[Nested]] = {}
    for parents in found.values():
        outermost = next((parent for parent in parents if parent not in found), None)
        if outermost is not None:
            kids.setdefault(outermost, []).append(parents[outermost])
    return kids


def _owners(own: list[Place]) -> dict[tuple[str, int], dict[int, int]]:
    """For every (tensor, axis): which unit owns a position."""
    table: dict[tuple[str, int], dict[int, int]] = {}
    for place in own:
        if place.batch_axis is not None:
            continue
        copies, n, width = place.positions.shape
        units = np.repeat(np.arange(copies * n), width)
        table.setdefault((place.tensor, place.axis), {}).update(
            zip(place.positions.reshape(-1).tolist(), units.tolist(), strict=True)
        )
    return table


def _inside(
    symmetry: Symmetry, own: list[Place], parent: Symmetry, owner: Mapping[tuple[str, int], Mapping[int, int]]
) -> Nested | None:
    holder: np.ndarray | None = None
    for place in own:
        axis = place.axis if place.batch_axis is None else place.batch_axis
        table = owner.get((place.tensor, axis))
        if table is None:
            return None
        rows = (
            place.positions.reshape(len(place.positions), -1).tolist()
            if place.batch_axis is None
            else [[c] for c in range(symmetry.copies)]
        )
        units = [{table.get(i, -1) for i in row} for row in rows]
        if any(len(found) != 1 or -1 in found for found in units):
            return None
        now = np.array([next(iter(found)) for found in units])
        if holder is not None and (now != holder).any():
            return None
        holder = now
    if holder is None:
        return None
    count = parent.copies * parent.n
    each = np.bincount(holder, minlength=count)
    if len(each) != count or (each != each[0]).any():
        return None
    return Nested(symmetry, torch.from_numpy(np.argsort(holder, kind="stable").reshape(count, -1)))
