"""Models of unequal widths in one frame: tensors as large as the largest, units that a model lacks being zero.

A square map of the frame is a rectangular one between two models: of an orthogonal matrix only the part counts that joins
units that are there, so Procrustes and assignment in the frame solve the rectangular problems. So one descent serves all widths.
A source with fewer units than the anchor is carried without loss; of one with more, what the maps keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isclose, sqrt
from typing import TYPE_CHECKING

import numpy as np
import torch

from otfuse.align import matrix
from otfuse.align.elements import Dense, Monomial, carried
from otfuse.align.laid import Laid
from otfuse.align.spaces import Spaces
from otfuse.core.alignment import AxisMap, Carry
from otfuse.core.symmetry import Kind
from otfuse.errors import UnequalError
from otfuse.flow.rules.operators import argument, operator_name
from otfuse.program.weights import Weights
from otfuse.solve.procrustes import ones_basis

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from otfuse.align.elements import Element, Place
    from otfuse.core.graph import FlowGraph
    from otfuse.core.symmetry import Symmetry
    from otfuse.measure.probe import Side


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
        self._laid = Laid([Spaces(symmetries) for symmetries in found])
        self.each, self._axes = self._laid.each, self._laid.axes
        self._known = dict[tuple[str, int, int], tuple["Element | None", "Element | None"]]()
        graph = sides[0].graph
        for name, shape in shapes[0].items():
            if graph.ties.get(name, name) != name or name in graph.unread:
                continue
            theirs = [own.get(name, shape) for own in shapes]
            if len({len(own) for own in theirs}) > 1:
                raise UnequalError(f"aligned: {name} has other dimensions in one model than in another")
            for axis in range(len(shape)):
                self._laid.add(name, axis, [own[axis] for own in theirs])
        self.symmetries = tuple(self._framed(s) for s in self.own)
        self.shapes = {
            name: tuple(self._axes[name, d].size if (name, d) in self._axes else n for d, n in enumerate(shape))
            for name, shape in shapes[0].items()
        }
        scalings = [_scalings(side) for side in sides]
        self._ratios = [[own[name] / n for name, n in scalings[0].items() if n and name in own] for own in scalings]
        self._tied = _read_and_written(sides[0].graph)
        mixing = [slot for s in self.own if s.kind.mixes for slot in self._laid.slots[s.space.id]]
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

    def taken(self, name: str, tensor: torch.Tensor, model: int = 0) -> torch.Tensor:
        """What is the anchor's, or another model's, of a tensor in the frame."""
        for axis in range(tensor.ndim):
            own = self._axes.get((name, axis))
            if own is not None:
                tensor = tensor.index_select(axis, torch.from_numpy(own.at[model]).to(tensor.device))
        return tensor

    def units(self, key: str, model: int) -> tuple[int, int]:
        """How many units a map of the space joins in the anchor, and in that model."""
        return self.each[0].all[key].n, self.each[model].all[key].n

    def told(self, model: int) -> str:
        """Where a model's sizes are not the anchor's, with both; empty where they are."""
        sizes = dict.fromkeys(
            (
                s.space.kind,
                *self.units(s.space.id, model),
                *(own[s.space.id][0] for own in (self._laid.sizes[0], self._laid.sizes[model])),
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

    def _framed(self, symmetry: Symmetry) -> Symmetry:
        key = symmetry.space.id
        ones = self.each[0].all[key].n if key in self._laid.unequal else None
        return replace(symmetry, slots=tuple(self._laid.slots[key]), ones=ones)

    def first(self, name: str, model: int, spaces: Spaces, *, lengths: bool = True) -> list[tuple[Place, Element]]:
        """What brings a model's tensor to the lengths that the anchor's sizes ask for, and its all-ones to the anchor's.

        A norm gives its units the same mean square however many they are: what writes into a stream takes the square root of the
        ratio of widths, and what reads it the inverse. Scores of an attention that are divided by the root of a head's size differ
        by the fourth root in queries and in keys. All-ones are turned where maps leave them in place (that alone without
        ``lengths``).
        """
        at = [(place, self._steps(key, model, 1)) for key, place in spaces.at.get(name, ())]
        return [(place, own) for place, steps in at for own in steps[: 2 if lengths else 1] if own is not None]

    def back(self, name: str, model: int, spaces: Spaces) -> list[tuple[Place, Element]]:
        """What undoes :meth:`first`."""
        at = [(place, self._steps(key, model, -1)) for key, place in spaces.at.get(name, ())]
        return [(place, own) for place, steps in at for own in steps if own is not None]

    def _steps(self, key: str, model: int, way: int) -> tuple[Element | None, Element | None]:
        """Turn and length of a space, there (1) or back (-1): they commute."""
        if (key, model, way) not in self._known:
            turn = self._turn(key, model)
            turn = turn.inverse() if turn is not None and way < 0 else turn
            self._known[key, model, way] = turn, self._length(key, model, way)
        return self._known[key, model, way]

    def _score_factor(self, model: int, ratio: float) -> float:
        """What queries, and keys, are multiplied by, if scores are scaled by the size of a head: once, or both of these."""
        found = [scaled for scaled in self._ratios[model] if any(isclose(scaled, own) for own in (ratio, sqrt(ratio)))]
        return sqrt(ratio) if found else 1.0

    def _turn(self, key: str, model: int) -> Element | None:
        symmetry, (ours, theirs) = self.each[0].all[key], self.units(key, model)
        if symmetry.space.kind != "stream" or symmetry.kind is not Kind.ORTHOGONAL_ONES or ours == theirs:
            return None
        n = self._laid.common[key][1]
        turn = (ones_basis(n, ours) @ ones_basis(n, theirs).T).repeat(self._laid.copies(key), 1, 1)
        return Dense(turn, turn)

    def _length(self, key: str, model: int, way: int) -> Element | None:
        symmetry, (ours, theirs) = self.each[0].all[key], self.units(key, model)
        shape = self._laid.copies(key), self._laid.common[key][1]
        if symmetry.space.kind == "query-key":
            factor = self._score_factor(model, sqrt(ours / theirs)) ** way
            both = factor * torch.eye(shape[1], dtype=torch.float64).repeat(shape[0], 1, 1)
            return None if factor == 1 else Dense(both, both)
        tied = any((p.tensor, p.axis) in self._tied for p in self.each[0].places[key])
        if symmetry.space.kind != "stream" or ours == theirs or tied:
            return None
        order = torch.arange(shape[1]).repeat(shape[0], 1)
        return Monomial(order, torch.full(shape, sqrt(ours / theirs) ** way, dtype=torch.float64))


class Unframed(Mapping[str, torch.Tensor]):
    """A model's tensors of the frame, moved there by elements that leave it what it computes, in its own sizes and basis again."""

    def __init__(self, moved: Mapping[str, torch.Tensor], frame: Frame, model: int, spaces: Spaces) -> None:
        self._moved, self._frame, self._model, self._spaces = moved, frame, model, spaces

    def __getitem__(self, name: str) -> torch.Tensor:
        own, back = self._moved[name], self._frame.back(name, self._model, self._spaces)
        return self._frame.taken(name, carried(own.double(), back).to(own) if back else own, self._model)

    def __iter__(self) -> Iterator[str]:
        return iter(self._moved)

    def __len__(self) -> int:
        return len(self._moved)


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


def _read_and_written(graph: FlowGraph) -> set[tuple[str, int]]:
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
