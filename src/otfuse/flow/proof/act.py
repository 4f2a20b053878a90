"""Elements of the groups of spaces: drawing them at random, and applying them to stored tensors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from otfuse.core.space import Group

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from otfuse.core.space import Member, Space


@dataclass(frozen=True, slots=True, eq=False)
class Element:
    """One element of the group of a space.

    It is ``order[copies, size]`` (new unit ``u`` is old ``order[c, u]``), or ``angles[copies, size]`` in radians for a
    rotary space.
    """

    space: Space
    order: NDArray[np.int64] | None = None
    angles: NDArray[np.float64] | None = None


def number(seed: int, *path: str) -> int:
    """64 bits for one named use of chance, the same in every process."""
    digest = hashlib.blake2b("/".join(path).encode(), key=seed.to_bytes(8, "big"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def chance(seed: int, *path: str) -> np.random.Generator:
    """The generator of one named use of chance."""
    return np.random.default_rng(number(seed, *path))


def draw(space: Space, seed: int) -> Element:
    """A random element: derangements (small random permutations are often the identity), or angles."""
    source = chance(seed, space.id)
    if space.group is Group.ROTARY:
        return Element(space, angles=source.uniform(0.5, 2.5, (space.copies, space.size)))
    return Element(space, order=np.stack([_derangement(space.size, source) for _ in range(space.copies)]))


def generators(space: Space, seed: int) -> list[Element]:
    """Elements that generate all permutations: a cycle, two of its neighbours exchanged, and the first copy alone.

    A space that tolerates these tolerates every permutation of its units; random draws could miss that only some do.
    """
    cycle = draw(space, seed).order
    assert cycle is not None  # rotary spaces are turned, not permuted
    stay = np.tile(np.arange(space.size), (space.copies, 1))
    swap, alone, rows = stay.copy(), stay.copy(), np.arange(space.copies)
    swap[:, 0], swap[rows, cycle[:, 0]] = cycle[:, 0], 0
    alone[0] = cycle[0]
    return [Element(space, order=order) for order in (cycle, swap, alone)]


def exchange(space: Space) -> Element:
    """Real and imaginary part of all pairs exchanged: any turn of a pair by a table tells it from a turn."""
    members = tuple(
        replace(m, positions=m.positions.reshape(space.copies * space.size, -1, 2).swapaxes(1, 2))
        for m in space.members
    )
    pairs = replace(space, size=2, copies=space.copies * space.size, group=Group.PERMUTATION, members=members)
    return Element(pairs, order=np.tile([1, 0], (pairs.copies, 1)))


class Moves:
    """Elements of the groups of several spaces, as they act one after another on one stored tensor at a time."""

    def __init__(self, elements: Iterable[Element]) -> None:
        self._by_tensor: dict[str, list[tuple[Member, Element]]] = {}
        for element in elements:
            for member in element.space.members:
                self._by_tensor.setdefault(member.tensor, []).append((member, element))

    @property
    def names(self) -> frozenset[str]:
        """The tensors that are moved."""
        return frozenset(self._by_tensor)

    def __call__(self, name: str, tensor: torch.Tensor, *, skip: Member | None = None) -> torch.Tensor:
        """The tensor of that name, moved at every member but ``skip``; the one given stays as it is."""
        waiting: dict[int, NDArray[np.int64]] = {}  # permutations of one axis are gathered
        for member, element in self._by_tensor.get(name, ()):
            if member is skip:
                continue
            if element.order is not None and member.batch_axis is None:
                before = waiting.get(member.axis, np.arange(tensor.shape[member.axis]))
                waiting[member.axis] = before[_indices(len(before), member.positions, element.order)]
                continue
            tensor = _gathered(tensor, waiting)  # before what cannot be gathered, in the same order everywhere
            if element.angles is not None:
                tensor = _turn(tensor, member, element.angles)
            elif element.order is not None:
                tensor = _permute_slices(tensor, member, element.order)
        return _gathered(tensor, waiting)


def act(
    elements: Iterable[Element], weights: Mapping[str, torch.Tensor], *, skip: Member | None = None
) -> dict[str, torch.Tensor]:
    """All of ``weights``, with every element applied to every member of its space, except the member ``skip``."""
    moved = Moves(elements)
    return {name: moved(name, tensor, skip=skip) for name, tensor in weights.items()}


def _gathered(tensor: torch.Tensor, waiting: dict[int, NDArray[np.int64]]) -> torch.Tensor:
    while waiting:
        axis, index = waiting.popitem()
        tensor = tensor.index_select(axis, torch.from_numpy(index).to(tensor.device))
    return tensor


def _indices(length: int, positions: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    index = np.arange(length)
    for places, permutation in zip(positions, order, strict=True):
        index[places] = places[permutation]
    return index


def _permute_slices(tensor: torch.Tensor, member: Member, order: NDArray[np.int64]) -> torch.Tensor:
    """Batched weights: copy ``c`` moves only slice ``c`` of the batch axis."""
    assert member.batch_axis is not None  # for the type checker
    axis = member.axis - (member.axis > member.batch_axis)
    slices = []
    for copy, part in enumerate(tensor.unbind(member.batch_axis)):
        index = _indices(part.shape[axis], member.positions[copy : copy + 1], order[copy : copy + 1])
        slices.append(part.index_select(axis, torch.from_numpy(index).to(part.device)))
    return torch.stack(slices, member.batch_axis)


def _turn(tensor: torch.Tensor, member: Member, angles: NDArray[np.float64]) -> torch.Tensor:
    """Every pair turned by its angle: the last factor of the width is (real, imaginary)."""
    pairs = member.positions.reshape(*member.positions.shape[:2], -1, 2)
    turn = torch.from_numpy(np.repeat(angles[:, :, None], pairs.shape[2], axis=2).reshape(-1)).to(tensor)
    shape = [-1 if d == member.axis else 1 for d in range(tensor.ndim)]
    cos, sin = turn.cos().reshape(shape), turn.sin().reshape(shape)
    real, imaginary = (torch.from_numpy(pairs[..., i].reshape(-1)).to(tensor.device) for i in (0, 1))
    x, y = tensor.index_select(member.axis, real), tensor.index_select(member.axis, imaginary)
    out = tensor.clone()
    out.index_copy_(member.axis, real, x * cos - y * sin)
    out.index_copy_(member.axis, imaginary, x * sin + y * cos)
    return out


def _derangement(size: int, source: np.random.Generator) -> NDArray[np.int64]:
    """A random cyclic order of the units: no unit stays (size 1 has no choice)."""
    cycle = source.permutation(size)
    order = np.empty(size, np.int64)
    order[cycle] = np.roll(cycle, 1)
    return order
