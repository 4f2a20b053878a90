"""Places that were sent somewhere by number: which expert a row belongs to, and where that is still known.

A weight chosen by number has the index of the expert no longer as an axis; it is known from the place. One choice is the
numbers of one operator at the places that the numbers have. Two choices may differ although one router made both, and
so may the same numbers after anything has changed or moved them: each operator that does makes another choice.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import fx

    from otfuse.flow.algebra.axes import Algebra, Atom, Axis
    from otfuse.flow.rules.facts import Choice

LOST: Final = {"misaligned", "misaligned view", "sliced", "unfolded"}  # why the places of an axis are not followed


class Choices:
    """What the choices of a program tell once its axes are solved."""

    def __init__(self, algebra: Algebra, choices: Sequence[Choice]) -> None:
        self._algebra = algebra
        self._known: list[tuple[fx.Node, set[Atom], set[Atom], set[Atom]]] = []  # origin, chosen, places, their leaves
        self.forgotten: list[tuple[set[Atom], set[Atom]]] = []  # leaves that stand beside, and leaves chosen
        for choice in choices:
            chosen, places = set(algebra.leaves(choice.chosen)), sum(choice.places, ())
            single = 1 in choice.origin.meta["val"].shape  # what other inputs have there may move
            if algebra.flat(places) and not single and self._followed(places):
                self._known.append((choice.origin, chosen, set(algebra.flat(places)), set(algebra.leaves(places))))
            else:
                self.forgotten.append((set(algebra.leaves(sum(choice.taken, ()))), chosen))

    def told(self, atoms: Iterable[Atom]) -> dict[Atom, set[fx.Node]]:
        """Leaves that are known where these factors are indexed, each with the choices that tell it."""
        once = {atom for atom, times in Counter(atoms).items() if times == 1}
        found: dict[Atom, set[fx.Node]] = {}
        for made, chosen, places, _ in self._known:
            if places <= once:
                for leaf in chosen:
                    found.setdefault(leaf, set()).add(made)
        return found

    def among(self, direct: set[Atom], atoms: Iterable[Atom]) -> set[Atom]:
        """``direct`` and what is told where these factors are indexed; what is told in two ways is not known."""
        told = self.told(atoms)
        twice = {leaf for leaf, made in told.items() if len(made) + (leaf in direct) > 1}
        return (direct | told.keys()) - twice

    def moved(self, leaves: set[Atom]) -> set[Atom]:
        """What is no longer told once places along these leaves have met."""
        return {leaf for _, chosen, _, own in self._known if leaves & own for leaf in chosen}

    def __bool__(self) -> bool:
        return bool(self._known)

    def _followed(self, places: Axis) -> bool:
        """Whether no two places can be taken for each other: they share no leaf, and single places stand alone."""
        leaves = list(self._algebra.leaves(places))
        lost = any(self._algebra.cell(leaf).hard & LOST for leaf in leaves)
        return not lost and len(set(leaves)) == len(leaves) and all(n <= 1 for n in self._single(places))

    def _single(self, axis: Axis) -> Iterator[int]:
        """For every sum below the axis: how many of its parts are single places, which have no leaf."""
        for atom in self._algebra.flat(axis):
            if self._algebra.is_sum(atom):
                parts = self._algebra.parts(atom)
                yield sum(not self._algebra.flat(part) for part in parts)
                for part in parts:
                    yield from self._single(part)
