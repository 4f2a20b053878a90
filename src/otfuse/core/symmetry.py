"""Symmetries: the largest exact group of every space of a model in canonical form, and where its elements act."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from otfuse.core.space import Group

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from otfuse.core.space import Space


class Kind(StrEnum):
    """What the maps ``M[copies, n, n]`` of a space may be, from least to most."""

    PERMUTATION = "permutation"
    SIGNS = "signs"  # signed permutations
    POSITIVE = "positive"  # permutations with positive factors
    SCALING = "scaling"  # permutations with any factors but zero
    TURN = "turn"  # a complex number per pair: n = 2, one copy per pair
    ORTHOGONAL_ONES = "orthogonal fixing the all-ones"
    ORTHOGONAL = "orthogonal"
    INVERTIBLE = "invertible"

    @property
    def group(self) -> Group:
        """The group by the name of the contract."""
        return _GROUPS[self]

    @property
    def mixes(self) -> bool:
        """Whether elements mix units, so that gains of single units stay where they are."""
        return self in (Kind.TURN, Kind.ORTHOGONAL, Kind.ORTHOGONAL_ONES, Kind.INVERTIBLE)


_GROUPS = {
    Kind.PERMUTATION: Group.PERMUTATION,
    Kind.SIGNS: Group.MONOMIAL,
    Kind.POSITIVE: Group.MONOMIAL,
    Kind.SCALING: Group.MONOMIAL,
    Kind.TURN: Group.ROTARY,
    Kind.ORTHOGONAL_ONES: Group.ORTHOGONAL,
    Kind.ORTHOGONAL: Group.ORTHOGONAL,
    Kind.INVERTIBLE: Group.INVERTIBLE,
}


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One place where a space acts on a stored tensor: ``positions[copies, n]`` along ``axis``.

    ``inverse``: the inverse transpose acts (what reads the units, and the keys of an attention). ``order_only``: of a
    monomial element only its permutation acts (gains, and the factor of a product that is not linear); elements that
    mix units leave it alone. ``batch_axis`` as in :class:`otfuse.core.space.Member`: copy ``c`` moves slice ``c`` of that axis.
    """

    tensor: str
    axis: int
    positions: NDArray[np.int64]
    inverse: bool = False
    order_only: bool = False
    batch_axis: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Symmetry:
    """A space that is not pinned with its group: ``copies`` maps of ``n`` x ``n``.

    A rotary space of ``copies`` x ``size`` pairs has that many copies here, and n = 2. ``price`` is None for an exact
    group, else what the carried source alone loses (a near-symmetry). ``ones``: how many units, the first, have a one in the
    all-ones that a map leaves in place (None: all).
    """

    space: Space
    kind: Kind
    slots: Sequence[Slot]
    price: float | None = None
    ones: int | None = None

    @property
    def copies(self) -> int:
        """Independent maps."""
        return int(self.slots[0].positions.shape[0])

    @property
    def n(self) -> int:
        """Units that one map joins."""
        return int(self.slots[0].positions.shape[1])
