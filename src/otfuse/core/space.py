"""Spaces: sets of interchangeable hidden units, and where they appear in the stored tensors."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Group(StrEnum):
    """What a space tolerates without any change of the model's function, from least to most."""

    PINNED = "pinned"
    PERMUTATION = "permutation"
    MONOMIAL = "monomial"
    ORTHOGONAL = "orthogonal"
    INVERTIBLE = "invertible"
    ROTARY = "rotary"


class Role(StrEnum):
    """What a stored tensor does with the units along one of its axes."""

    PRODUCES = "produces"
    CONSUMES = "consumes"
    SCALES = "scales"


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One place where a space appears in a stored tensor.

    ``positions[copies, size, width]`` (int64) holds the indices along ``axis`` of ``tensor`` that unit ``u`` of copy ``c``
    owns; the order along ``width`` is the same for every unit. ``batch_axis`` is None, or the axis of the same tensor
    whose index is the copy (batched expert weights): then copy ``c`` moves only the slice ``c`` of that axis.
    In a ``rotary`` space the last factor of the width is (real, imaginary): ``positions.reshape(copies, size, -1, 2)``.
    """

    tensor: str
    axis: int
    positions: NDArray[np.int64]
    role: Role
    batch_axis: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """A set of interchangeable hidden units.

    Law: whoever permutes ``positions`` in every member of a space that is not pinned (and whose group is not ``rotary``:
    pairs have their own frequencies), with one permutation per copy, gets an equal model. ``pinned`` is None or the
    reason why the units must stay where they are. ``exact`` names the largest exact group (:class:`otfuse.core.symmetry.Kind`)
    where that was asked for; it holds for the model in canonical form.
    """

    id: str
    name: str
    kind: str  # stream | units | heads | queries | query-key | value-output | channels | experts | ...
    size: int
    copies: int
    group: Group
    pinned: str | None
    members: tuple[Member, ...]
    exact: str | None = None

    @property
    def free(self) -> bool:
        """Whether permutations of the units leave the function unchanged."""
        return self.group not in (Group.PINNED, Group.ROTARY)
