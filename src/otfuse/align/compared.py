"""What is compared of two models, one named table at a time: a tensor of both, or cross moments of a node's units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from otfuse.align.elements import Dense, Monomial, carried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from otfuse.align.elements import Element, Place
    from otfuse.align.spaces import Spaces
    from otfuse.core.symmetry import Symmetry

    Moves = Sequence[tuple[Place, Element]]
    State = dict[str, Element]  # by space id

_ALIKE = 1e-8  # of the largest value: units that differ by less are alike


class Compared(Protocol):
    """A table of both models, or a part of it along an axis that no space touches."""

    def carried(self, moves: Moves) -> Compared:
        """The same with the source's side moved."""

    def products(self, place: Place) -> torch.Tensor:
        """``[copies, n, n]``: the anchor's units against the source's, over everything else."""

    def diagonal(self, place: Place) -> torch.Tensor:
        """``[copies, n]``: its diagonal."""

    def columns(self, place: Place) -> int:
        """How many numbers tell a unit from the others: none where all units have the same (gains of one)."""

    def inner(self) -> float:
        """The inner product of both sides."""

    def distance(self) -> float:
        """Their squared distance."""

    def grams(self, place: Place) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Products of the anchor's units with themselves, and of the source's; None where they are not known."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensors:
    """One stored tensor of the anchor and of the source."""

    anchor: torch.Tensor
    source: torch.Tensor

    def carried(self, moves: Moves) -> Tensors:
        """The same with the source's side moved."""
        return Tensors(self.anchor, carried(self.source, moves))

    def products(self, place: Place) -> torch.Tensor:
        """``sum a b'``."""
        return place.block(self.anchor) @ place.block(self.source).mT

    def diagonal(self, place: Place) -> torch.Tensor:
        """Its diagonal."""
        return (place.block(self.anchor) * place.block(self.source)).sum(2)

    def columns(self, place: Place) -> int:
        """Values per unit of one copy, where they are not the same for all units of either model."""
        blocks = [place.block(tensor) for tensor in (self.anchor, self.source)]
        return blocks[0].shape[2] if all(_differs(block) for block in blocks) else 0

    def inner(self) -> float:
        """``<anchor, source>``."""
        return float((self.anchor * self.source).sum(dtype=torch.float64))

    def distance(self) -> float:
        """``|anchor - source|^2``."""
        return float((self.anchor - self.source).square().sum(dtype=torch.float64))

    def grams(self, place: Place) -> tuple[torch.Tensor, torch.Tensor]:
        """``sum a a'`` and ``sum b b'``."""
        a, b = place.block(self.anchor), place.block(self.source)
        return (a @ a.mT).double(), (b @ b.mT).double()


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """``cross[anchor unit, source unit]`` of a node, as if its values were a table ``[rows, units]`` of both models."""

    cross: torch.Tensor

    def carried(self, moves: Moves) -> Moments:
        """The same with the source's units (axis 1) moved."""
        return Moments(carried(self.cross, moves))

    def products(self, place: Place) -> torch.Tensor:
        """Blocks of it."""
        at = place.positions
        return torch.stack(
            [self.cross[at[..., w][:, :, None], at[..., w][:, None, :]] for w in range(at.shape[2])]
        ).sum(0)

    def diagonal(self, place: Place) -> torch.Tensor:
        """Diagonals of these blocks."""
        return self.cross.diagonal()[place.positions].sum(2)

    def columns(self, place: Place) -> int:
        """As many as units: rows are many."""
        products = self.products(place)
        return place.positions.shape[1] if _differs(products) and _differs(products.mT) else 0

    def inner(self) -> float:
        """Its trace."""
        return float(self.cross.trace())

    def distance(self) -> float:
        """That of two tables of length one."""
        return 2 - 2 * self.inner()

    def grams(self, place: Place) -> None:  # noqa: ARG002  # what tensors have
        """Not known."""
        return


class Problem:
    """Tables of two models and the spaces that act on them. ``read`` gives a table in parts, the source's side not moved.

    ``noise`` is the share of the largest possible inner product below which a gain is rounding.
    """

    def __init__(
        self, spaces: Spaces, names: Iterable[str], read: Callable[[str], Iterable[Compared]], noise: float = 1e-12
    ) -> None:
        self.spaces, self.names, self._read, self.noise = spaces, tuple(names), read, noise

    def tables(
        self, names: Iterable[str], state: State, skip: frozenset[str] = frozenset()
    ) -> Iterator[tuple[str, Compared]]:
        """Tables with the source carried by all spaces but those in ``skip``."""
        for name in names:
            moves = [(place, state[key]) for key, place in self.spaces.at.get(name, ()) if key not in skip]
            for part in self._read(name):
                yield name, part.carried(moves)

    def cross(
        self, symmetry: Symmetry, state: State, only: frozenset[Place] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``[copies, n, n]`` twice: what elements act on with their signs, and where only their order acts."""
        wanted = [p for p in self.spaces.places[symmetry.space.id] if only is None or p in only]
        wanted = [p for p in wanted if not (p.order_only and symmetry.kind.mixes)]
        total = torch.zeros(2, symmetry.copies, symmetry.n, symmetry.n, dtype=torch.float64)
        for name, part in self.tables(self._among(wanted), state):
            for place in wanted:
                if place.tensor == name:
                    total[int(place.order_only)] += part.products(place)
        return total[0], total[1]

    def diagonal(self, symmetry: Symmetry, state: State) -> torch.Tensor:
        """``[copies, n]``: what every unit of the anchor has in common with the unit that is carried to it."""
        own = self.spaces.places[symmetry.space.id]
        total = torch.zeros(symmetry.copies, symmetry.n, dtype=torch.float64)
        for name, part in self.tables(self._among(own), state):
            for place in own:
                if place.tensor == name:
                    total += part.diagonal(place)
        return total

    def inner(self, state: State, names: Iterable[str] | None = None) -> float:
        """The inner product of the anchor's tables and the carried source's."""
        return sum(part.inner() for _, part in self.tables(self.names if names is None else names, state))

    def held(self, names: Iterable[str], state: State, inside: frozenset[str]) -> Problem:
        """The same problem for the spaces ``inside`` alone, others applied, its tables in memory."""
        kept: dict[str, list[Compared]] = {}
        for name, part in self.tables(names, state, skip=inside):
            kept.setdefault(name, []).append(part)
        return Problem(self.spaces.among(inside), kept, kept.__getitem__, self.noise)

    def _among(self, wanted: Iterable[Place]) -> list[str]:
        known = set(self.names)
        return [name for name in dict.fromkeys(place.tensor for place in wanted) if name in known]


def _differs(block: torch.Tensor) -> bool:
    """Whether units (axis 1) have other values than each other."""
    return float((block - block[:, :1]).abs().amax()) > _ALIKE * float(block.abs().amax())


def as_coupling(matrix: torch.Tensor) -> Dense:
    """A soft map: the same matrix wherever the space acts, gains included."""
    return Dense(matrix, matrix, matrix)


def moved(element: Element, order: torch.Tensor) -> Element:
    """The element after its units were put in another order first."""
    return element.after(Monomial(order))
