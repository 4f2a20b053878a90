"""Models of unequal widths in one frame: tensors as large as the largest, units that a model lacks being zero.

A square map of the frame is a rectangular one between two models: of an orthogonal matrix only the part counts that joins
units that are there, so Procrustes and assignment in the frame solve the rectangular problems. So one descent serves all widths.
A source with fewer units than the anchor is carried without loss; of one with more, what the maps keep.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isclose, prod, sqrt
from typing import TYPE_CHECKING

import numpy as np
import torch

from otfuse.align import matrix
from otfuse.align.elements import Dense, Monomial, carried
from otfuse.align.spaces import Spaces
from otfuse.align.spots import ranks_of, sizes_of, spots_of
from otfuse.core.alignment import AxisMap, Carry
from otfuse.core.symmetry import Kind, Slot
from otfuse.errors import UnequalError
from otfuse.flow.rules.operators import argument, operator_name
from otfuse.program.weights import Weights
from otfuse.solve.procrustes import ones_basis

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from otfuse.align.elements import Element, Place
    from otfuse.align.spots import Flags, Sizes
    from otfuse.core.graph import FlowGraph
    from otfuse.core.symmetry import Symmetry
    from otfuse.measure.probe import Side

    Axis = tuple[str, int]  # tensor, axis


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Positions of an axis that the same spaces hold: ``sizes`` counts along all of them, then what they do not tell apart."""

    held: tuple[Flags, ...]
    sizes: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True, eq=False)
class _Axis:
    """One axis of the frame: ``at[model]`` are the frame's positions of that model's."""

    size: int
    at: tuple[NDArray[np.int64], ...]


class Frame:
    """The frame of several models with the same spaces, by their symmetries and their shapes, anchor first.

    Raises UnequalError where their units cannot be told to correspond.
    """

    def __init__(
        self,
        sides: Sequence[Side],
        found: Sequence[Sequence[Symmetry]],
        shapes: Sequence[Mapping[str, tuple[int, ...]]],
    ) -> None:
        self.own = tuple(found[0])  # the anchor's
        self._each = [Spaces(symmetries) for symmetries in found]
        self._sizes = [sizes_of(spaces) for spaces in self._each]
        self._common = {key: _most(key, self._sizes) for key in self._each[0].all}
        self.unequal = frozenset(key for key in self._common if len({sizes[key] for sizes in self._sizes}) > 1)
        self._firsts: dict[tuple[str, int], Element | None] = {}  # by space and model, once asked for
        self._slots: dict[str, list[Slot]] = {key: [] for key in self._each[0].all}
        self._axes: dict[Axis, _Axis] = {}
        graph = sides[0].graph
        for name, shape in shapes[0].items():
            if graph.ties.get(name, name) != name or name in graph.unread:
                continue
            theirs = [own.get(name, shape) for own in shapes]
            if len({len(own) for own in theirs}) > 1:
                raise UnequalError(f"aligned: {name} has other dimensions in one model than in another")
            for axis in range(len(shape)):
                self._add(name, axis, [own[axis] for own in theirs])
        self.symmetries = tuple(self._framed(s) for s in self.own)
        self.shapes = {
            name: tuple(self._axes[name, d].size if (name, d) in self._axes else n for d, n in enumerate(shape))
            for name, shape in shapes[0].items()
        }
        scalings = [_scalings(side) for side in sides]
        self._ratios = [[own[name] / n for name, n in scalings[0].items() if n and name in own] for own in scalings]
        self._tied = _read_and_written(sides[0].graph)
        mixing = [slot for s in self.own if s.kind.mixes for slot in self._slots[s.space.id]]
        self._neutral = {(slot.tensor, slot.axis) for slot in mixing if slot.order_only}

    # -- what a model is in the frame ----------------------------------------------------------------------------------
    def weights(self, base: Weights, model: int, spaces: Spaces) -> Framed:
        """The tensors of a model, canonical, in the frame (``spaces`` are those of the frame)."""
        return Framed(base, self, model, spaces)

    def framed(self, name: str, tensor: torch.Tensor, model: int) -> torch.Tensor:
        """A model's tensor in the frame; zero where it has no units."""
        for axis in range(tensor.ndim):
            own = self._axes.get((name, axis))
            if own is not None:
                shape = [own.size if d == axis else n for d, n in enumerate(tensor.shape)]
                index = torch.from_numpy(own.at[model]).to(tensor.device)
                fill = tensor.mean() if (name, axis) in self._neutral else 0  # gains that all are the same
                tensor = torch.full(shape, float(fill), dtype=tensor.dtype).index_copy(axis, index, tensor)
        return tensor

    def taken(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """What is the anchor's of a tensor in the frame."""
        for axis in range(tensor.ndim):
            own = self._axes.get((name, axis))
            if own is not None:
                tensor = tensor.index_select(axis, torch.from_numpy(own.at[0]).to(tensor.device))
        return tensor

    def units(self, key: str, model: int) -> tuple[int, int]:
        """How many units a map of the space joins in the anchor, and in that model."""
        return self._each[0].all[key].n, self._each[model].all[key].n

    def told(self, model: int) -> str:
        """Where a model's sizes are not the anchor's, with both; empty where they are."""
        sizes = dict.fromkeys(
            (
                s.space.kind,
                *self.units(s.space.id, model),
                *(own[s.space.id][0] for own in (self._sizes[0], self._sizes[model])),
            )
            for s in self.own
        )
        units = [f"{kind} {theirs} to {ours}" for kind, ours, theirs, _, _ in sizes if ours != theirs]
        copies = [f"{kind} {theirs} times to {ours} times" for kind, _, _, ours, theirs in sizes if ours != theirs]
        return ", ".join(dict.fromkeys([*units, *copies]))

    # -- from carries of the frame to those between two models -------------------------------------------------------------
    def between(self, name: str, carries: Sequence[Carry], ndim: int) -> tuple[Carry, ...]:
        """Carries from a source in the frame to the anchor as it is."""
        found = []
        for carry in carries or (Carry(name, ()),):
            axes = [self._to_anchor(name, own) for own in carry.axes]
            known = {own.axis for own in axes}
            for axis in range(ndim):
                if axis not in known and (name, axis) in self._axes:
                    at = self._axes[name, axis].at[0]
                    axes.append(AxisMap(axis, matrix.identity(len(at)), np.arange(len(at)), at))
            if all(len(own.anchor) for own in axes):
                found.append(Carry(name, tuple(axes)))
        return tuple(own for own in found if own.axes)

    def joined(self, name: str, axis: int, carries: Sequence[Carry], model: int) -> matrix.Matrix | None:
        """The map of one axis of a tensor, ``[anchor positions, model's positions]``; None: as they are."""
        own = next((m for carry in carries for m in carry.axes if m.axis == axis), None)
        at = self._axes.get((name, axis))
        if at is None:
            return None if own is None else own.matrix
        square = matrix.identity(at.size) if own is None else own.matrix
        return matrix.take(square, at.at[0], at.at[model])

    def _to_anchor(self, name: str, own: AxisMap) -> AxisMap:
        at = self._axes.get((name, own.axis))
        if at is None:
            return own
        number = np.full(at.size, -1)
        number[at.at[0]] = np.arange(len(at.at[0]))
        ours = number[own.anchor]
        rows = np.flatnonzero(ours >= 0)
        return AxisMap(own.axis, matrix.take(own.matrix, rows, np.arange(len(own.source))), ours[rows], own.source)

    # -- laying it out -----------------------------------------------------------------------------------------------------
    def _add(self, name: str, axis: int, lengths: Sequence[int]) -> None:
        """One axis of one tensor: its blocks, the positions of every model in them, and the slots of the spaces there."""
        if len(set(lengths)) == 1 and self._stays(name, axis):
            return
        spots = [
            spots_of(spaces, sizes, name, axis, n)
            for spaces, sizes, n in zip(self._each, self._sizes, lengths, strict=True)
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
            self._axes[name, axis] = _Axis(start, tuple(at))
        for block in blocks.values():
            self._give_slots(name, axis, block, place)

    def _stays(self, name: str, axis: int) -> bool:
        """Whether the spaces along an axis are as large in all models, and lie alike: then it stays, with the anchor's slots."""
        here = [{key for key, p in own.at.get(name, ()) if p.axis == axis} for own in self._each]
        if any(key in self.unequal or self._each[0].root_of(key) in self.unequal for own in here for key in own):
            return False
        slots = [
            [s for key in sorted(here[0]) for s in own.all[key].slots if (s.tensor, s.axis) == (name, axis)]
            for own in self._each
        ]
        if any(own != here[0] for own in here) or len(set(map(len, slots))) > 1:
            return False
        pairs = [(one, other) for own in slots[1:] for one, other in zip(slots[0], own, strict=True)]
        if not all(
            np.array_equal(one.positions, other.positions) and one.inverse == other.inverse for one, other in pairs
        ):
            return False
        for key in here[0]:
            own = [s for s in self._each[0].all[key].slots if (s.tensor, s.axis) == (name, axis)]
            self._slots[key] += own
        return True

    def _counts(self, flags: Flags) -> tuple[int, int]:
        copies, n = self._common[flags[0]]
        return (1 if flags[3] else copies), n

    def _give_slots(self, name: str, axis: int, block: _Block, place: NDArray[np.int64]) -> None:
        numbers = place[block.start : block.start + prod(block.sizes)].reshape(block.sizes)
        for i, (key, inverse, order_only, batched) in enumerate(block.held):
            own = [2 * i, 2 * i + 1] if i == 0 or batched else [0, 1, 2 * i, 2 * i + 1]
            rest = [d for d in range(numbers.ndim) if d not in own]
            copies, n = self._copies(key), self._common[key][1]
            at = numbers.transpose(*own, *rest).reshape(-1, n, prod(block.sizes[d] for d in rest))
            at = np.broadcast_to(at, (copies, *at.shape[1:])) if batched else at
            batch = self._each[0].places[key]
            along = next((p.batch_axis for p in batch if (p.tensor, p.axis) == (name, axis) and batched), None)
            self._slots[key] += [
                Slot(name, axis, np.ascontiguousarray(at[..., w]), inverse, order_only, along)
                for w in range(at.shape[2])
            ]

    def _copies(self, key: str) -> int:
        parent = self._each[0].root_of(key)
        copies = self._common[key][0]
        return copies if parent == key else copies * prod(self._common[parent])

    def _framed(self, symmetry: Symmetry) -> Symmetry:
        key = symmetry.space.id
        ones = self._each[0].all[key].n if key in self.unequal else None
        return replace(symmetry, slots=tuple(self._slots[key]), ones=ones)

    def first(self, name: str, model: int, spaces: Spaces) -> list[tuple[Place, Element]]:
        """What brings a model's tensor to the lengths that the anchor's sizes ask for, and its all-ones to the anchor's.

        A norm gives its units the same mean square however many they are: what writes into a stream takes the square root of the
        ratio of widths, and what reads it the inverse. Scores of an attention that are divided by the root of a head's size differ
        by the fourth root in queries and in keys. All-ones are turned where maps leave them in place.
        """
        found = []
        for key, place in spaces.at.get(name, ()):
            if (key, model) not in self._firsts:
                self._firsts[key, model] = self._first(key, model)
            element = self._firsts[key, model]
            found += [] if element is None else [(place, element)]
        return found

    def _score_factor(self, model: int, ratio: float) -> float:
        """What queries, and keys, are multiplied by, if scores are scaled by the size of a head: once, or both of these."""
        found = [scaled for scaled in self._ratios[model] if any(isclose(scaled, own) for own in (ratio, sqrt(ratio)))]
        return sqrt(ratio) if found else 1.0

    def _first(self, key: str, model: int) -> Element | None:
        symmetry, (ours, theirs) = self._each[0].all[key], self.units(key, model)
        n, copies = self._common[key][1], self._copies(key)
        if symmetry.space.kind == "query-key":
            factor = self._score_factor(model, sqrt(ours / theirs))
            both = factor * torch.eye(n, dtype=torch.float64).repeat(copies, 1, 1)
            return None if factor == 1 else Dense(both, both)
        if symmetry.space.kind != "stream" or ours == theirs:
            return None
        tied = any((p.tensor, p.axis) in self._tied for p in self._each[0].places[key])
        factor = 1.0 if tied else sqrt(ours / theirs)
        if symmetry.kind is Kind.ORTHOGONAL_ONES:
            turn = (ones_basis(n, ours) @ ones_basis(n, theirs).T).repeat(copies, 1, 1)
            return Dense(turn * factor, turn / factor)
        return Monomial(torch.arange(n).repeat(copies, 1), torch.full((copies, n), factor, dtype=torch.float64))


class Framed(Weights):
    """A model's canonical tensors in a frame, each made when it is asked for."""

    def __init__(self, base: Weights, frame: Frame, model: int, spaces: Spaces) -> None:
        super().__init__({})
        self._base, self._frame, self._model, self._spaces = base, frame, model, spaces
        self.alike = base.alike

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.exact(name).to(self._base.dtype(name))

    def exact(self, name: str) -> torch.Tensor:
        """The same in float64."""
        exact = getattr(self._base, "exact", None)
        own = self._base[name].detach().double() if exact is None else exact(name)
        framed = self._frame.framed(name, own, self._model)
        return carried(framed, self._frame.first(name, self._model, self._spaces))

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)

    def __contains__(self, name: object) -> bool:
        return name in self._base

    def shape(self, name: str) -> torch.Size:
        """Its shape in the frame."""
        return torch.Size(self._frame.shapes[name])

    def dtype(self, name: str) -> torch.dtype:
        """The type in which it is given."""
        return self._base.dtype(name)

    def stored(self, name: str) -> torch.dtype:
        """The type in which it is stored."""
        return self._base.stored(name)


def _most(key: str, sizes: Sequence[Sizes]) -> tuple[int, int]:
    return max(own[key][0] for own in sizes), max(own[key][1] for own in sizes)


def _read_and_written(graph: FlowGraph) -> set[Axis]:
    """Axes of tensors that layers read by as well as write by: a tied table has no length that suits both."""
    pieces = [piece for node in graph.nodes for piece in node.pieces]
    written = {(piece.tensor, piece.writes[0]) for piece in pieces if piece.writes is not None}
    return written & {(piece.tensor, piece.reads[0]) for piece in pieces if piece.reads is not None}


def _scalings(side: Side) -> dict[str, float]:
    """Numbers in the code that values are multiplied by, by the node that does it."""
    found = {}
    for node in side.program.graph.nodes:
        name = operator_name(node) if node.op == "call_function" else ""
        if "scaled_dot_product_attention" in name:
            scale = argument(node, 6, "scale")
            found[node.name] = float(scale) if scale is not None else node.args[0].meta["val"].shape[-1] ** -0.5
        elif name in ("mul", "div") and isinstance(node.args[1], int | float) and node.args[1]:
            found[node.name] = float(node.args[1]) ** (1 if name == "mul" else -1)
    return found
