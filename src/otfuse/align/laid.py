"""Axes of several models laid side by side: as long as the longest, unit by unit, and where every model's positions are in them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch

from otfuse.align.spots import ranks_of, sizes_of, spots_of
from otfuse.core.symmetry import Slot
from otfuse.errors import UnequalError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from otfuse.align.spaces import Spaces
    from otfuse.align.spots import Flags


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """One axis: ``at[model]`` are the positions of that model's."""

    size: int
    at: tuple[NDArray[np.int64], ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Positions of an axis that the same spaces hold: ``sizes`` counts along all of them, then what they do not tell apart."""

    held: tuple[Flags, ...]
    sizes: tuple[int, ...]
    start: int


class Laid:
    """What was laid of models with the same spaces, ``each`` model's, anchor first.

    ``common`` are the most copies and units of any model by space, ``unequal`` the spaces in which models differ. ``axes`` by tensor and
    axis are those where models lie otherwise than the anchor, ``slots`` where the spaces act.
    """

    def __init__(self, each: Sequence[Spaces]) -> None:
        self.each = tuple(each)
        self.sizes = [sizes_of(spaces) for spaces in each]
        self.common = {
            key: (max(own[key][0] for own in self.sizes), max(own[key][1] for own in self.sizes)) for key in each[0].all
        }
        self.unequal = frozenset(key for key in self.common if len({own[key] for own in self.sizes}) > 1)
        self.axes: dict[tuple[str, int], Axis] = {}
        self.slots: dict[str, list[Slot]] = {key: [] for key in each[0].all}

    def add(self, name: str, axis: int, lengths: Sequence[int]) -> None:
        """One axis of one tensor: its blocks, the positions of every model in them, and the slots of the spaces there.

        Raises UnequalError, and lays nothing, where units cannot be told to correspond.
        """
        if len(set(lengths)) == 1 and self._stays(name, axis):
            return
        spots = [
            spots_of(spaces, sizes, name, axis, n)
            for spaces, sizes, n in zip(self.each, self.sizes, lengths, strict=True)
        ]
        kinds = [dict.fromkeys(spot.held for spot in own) for own in spots]
        if any(own.keys() != kinds[0].keys() for own in kinds):
            raise UnequalError(f"aligned: axis {axis} of {name} is held by other spaces in one model than in another")
        start, ranks = 0, [ranks_of(own) for own in spots]
        blocks: dict[tuple[Flags, ...], _Block] = {}
        for held in kinds[0]:
            wide = {max((r for s, r in zip(own, rank, strict=True) if s.held == held), default=0) + 1
                    for own, rank in zip(spots, ranks, strict=True)}  # fmt: skip
            if not held and len(wide) > 1:
                raise UnequalError(
                    f"aligned: {name} has {' and '.join(map(str, sorted(set(lengths))))} places along axis {axis} that stay in "
                    "their order, in one model and in another; give models that agree in these"
                )
            sizes = tuple(n for flags in held for n in self._counts(flags))
            blocks[held] = _Block(held, (*sizes, max(wide)), start)
            start += prod(sizes) * max(wide)
        at = [
            np.array([blocks[s.held].start + int(np.ravel_multi_index((*s.at, r), blocks[s.held].sizes))
                      for s, r in zip(own, rank, strict=True)], np.int64)
            for own, rank in zip(spots, ranks, strict=True)
        ]  # fmt: skip
        place = np.arange(start)
        if all(len(own) == start for own in at):  # nobody lacks anything: in the anchor's own order
            place[at[0]] = np.arange(start)
            at = [place[own] for own in at]
        if any(len(own) != start or (own != np.arange(start)).any() for own in at):
            self.axes[name, axis] = Axis(start, tuple(at))
        for block in blocks.values():
            self._give_slots(name, axis, block, place)

    def copies(self, key: str) -> int:
        """How many copies of a space there are, in all units of one that holds it."""
        parent = self.each[0].root_of(key)
        copies = self.common[key][0]
        return copies if parent == key else copies * prod(self.common[parent])

    def _stays(self, name: str, axis: int) -> bool:
        """Whether the spaces along an axis are as large in all models, and lie alike: then it stays, with the anchor's slots."""
        ours, *theirs = ([(key, p) for key, p in own.at.get(name, ()) if p.axis == axis] for own in self.each)
        roots = {key for key, _ in ours} | {self.each[0].root_of(key) for key, _ in ours}
        if roots & self.unequal or any(len(own) != len(ours) for own in theirs):
            return False
        for own in theirs:
            for (key, p), (other, q) in zip(ours, own, strict=True):
                if (key, p.inverse, p.order_only) != (other, q.inverse, q.order_only):
                    return False
                if not torch.equal(p.positions, q.positions):
                    return False
        for key, p in ours:
            at = np.moveaxis(p.positions.numpy(), 2, 0)
            self.slots[key] += [Slot(name, axis, own, p.inverse, p.order_only, p.batch_axis) for own in at]
        return True

    def _counts(self, flags: Flags) -> tuple[int, int]:
        copies, n = self.common[flags[0]]
        return (1 if flags[3] else copies), n

    def _give_slots(self, name: str, axis: int, block: _Block, place: NDArray[np.int64]) -> None:
        numbers = place[block.start : block.start + prod(block.sizes)].reshape(block.sizes)
        for i, (key, inverse, order_only, batched) in enumerate(block.held):
            own = [2 * i, 2 * i + 1] if i == 0 or batched else [0, 1, 2 * i, 2 * i + 1]
            rest = [d for d in range(numbers.ndim) if d not in own]
            copies, n = self.copies(key), self.common[key][1]
            at = numbers.transpose(*own, *rest).reshape(-1, n, prod(block.sizes[d] for d in rest))
            at = np.broadcast_to(at, (copies, *at.shape[1:])) if batched else at
            batch = self.each[0].places[key]
            along = next((p.batch_axis for p in batch if (p.tensor, p.axis) == (name, axis) and batched), None)
            self.slots[key] += [
                Slot(name, axis, np.ascontiguousarray(at[..., w]), inverse, order_only, along)
                for w in range(at.shape[2])
            ]
