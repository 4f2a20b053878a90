"""Elements of the groups of spaces, one per copy, as maps from a source's units to the anchor's, and how they act on tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from otfuse.core.symmetry import Slot, Symmetry

Element: TypeAlias = "Monomial | Dense"


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Slots of one tensor and axis that differ in nothing but their places: ``positions[copies, n, width]``.

    ``inverse``, ``order_only`` and ``batch_axis`` as in :class:`otfuse.core.symmetry.Slot`.
    """

    tensor: str
    axis: int
    positions: torch.Tensor
    inverse: bool = False
    order_only: bool = False
    batch_axis: int | None = None
    _index: slice | tuple[torch.Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", self._indexed())  # asked for with every tensor that is carried

    def block(self, tensor: torch.Tensor) -> torch.Tensor:
        """``[copies, n, rest]`` of a tensor, not to be changed: a view of it where the positions lie side by side."""
        copies, n, _ = self.positions.shape
        return self._view(tensor)[self._index].reshape(copies, n, -1)

    def write(self, tensor: torch.Tensor, block: torch.Tensor) -> None:
        """The block back into a tensor, in place."""
        view, index = self._view(tensor), self._index
        rest = view.shape[1 if self.batch_axis is None else 2 :]
        lead = (index.stop - index.start,) if isinstance(index, slice) else index[-1].shape
        view[index] = block.reshape(*lead, *rest).to(tensor)

    def whole(self, tensor: torch.Tensor, block: torch.Tensor) -> torch.Tensor | None:
        """The tensor that such a block is all of, in another layout; None if there are other positions."""
        view, index = self._view(tensor), self._index
        if not isinstance(index, slice) or index.stop - index.start != len(view):
            return None
        return block.reshape(view.shape).movedim(0, self.axis).to(tensor)

    def _view(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.batch_axis is None:
            return tensor.movedim(self.axis, 0)
        return tensor.movedim((self.batch_axis, self.axis), (0, 1))

    def _indexed(self) -> slice | tuple[torch.Tensor, ...]:
        if self.batch_axis is not None:
            own = self.positions.reshape(len(self.positions), -1)
            return torch.arange(len(own))[:, None], own
        own = self.positions.reshape(-1)
        start = int(own[0])
        side_by_side = int(own[-1]) - start == len(own) - 1 and bool((own[1:] > own[:-1]).all())
        return slice(start, start + len(own)) if side_by_side else (own,)


def places(slots: Iterable[Slot]) -> list[Place]:
    """Slots that act alike, side by side."""
    alike: dict[tuple[object, ...], list[np.ndarray]] = {}
    for s in slots:
        alike.setdefault((s.tensor, s.axis, s.inverse, s.order_only, s.batch_axis), []).append(s.positions)
    return [
        Place(tensor, axis, torch.from_numpy(np.stack(found, 2)), inverse, order_only, batch_axis)  # type: ignore[arg-type]
        for (tensor, axis, inverse, order_only, batch_axis), found in alike.items()
    ]


@dataclass(frozen=True, slots=True, eq=False)
class Monomial:
    """``new[u] = factor[u] * old[order[u]]``, ``order[copies, n]``; ``factor`` None is one everywhere."""

    order: torch.Tensor
    factor: torch.Tensor | None = None

    def on(self, block: torch.Tensor, place: Place) -> torch.Tensor:
        """The block ``[copies, n, rest]`` with the element, or its inverse transpose, applied."""
        if self.factor is None and bool((self.order == torch.arange(self.order.shape[1])).all()):
            return block
        moved = block[torch.arange(len(block))[:, None], self.order]
        if self.factor is None or place.order_only:
            return moved
        return moved * (1 / self.factor if place.inverse else self.factor)[:, :, None].to(moved)

    def after(self, first: Element) -> Element:
        """This element after another."""
        if isinstance(first, Dense):
            matrix, dual = self._both()
            order = None if first.order is None else Monomial(self.order).dense() @ first.order
            return Dense(matrix @ first.matrix, dual @ first.dual, order)
        order = first.order.gather(1, self.order)
        if self.factor is None and first.factor is None:
            return Monomial(order)
        inner = torch.ones_like(self.order, dtype=torch.float64) if first.factor is None else first.factor
        inner = inner.gather(1, self.order)
        return Monomial(order, inner if self.factor is None else self.factor * inner)

    def inverse(self) -> Monomial:
        """The element that undoes it."""
        order = self.order.argsort(1)
        return Monomial(order, None if self.factor is None else 1 / self.factor.gather(1, order))

    def taken(self, copies: torch.Tensor) -> Monomial:
        """The elements of these copies."""
        return Monomial(self.order[copies], None if self.factor is None else self.factor[copies])

    def dense(self) -> torch.Tensor:
        """``[copies, n, n]``."""
        return self._both()[0]

    def _both(self) -> tuple[torch.Tensor, torch.Tensor]:
        matrix = torch.nn.functional.one_hot(self.order, self.order.shape[1]).double()
        return (
            (matrix, matrix)
            if self.factor is None
            else (matrix * self.factor[:, :, None], matrix / self.factor[:, :, None])
        )


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """``matrix[copies, n, n]``; ``dual`` acts where the inverse transpose does, ``order`` on gains (None: they stay)."""

    matrix: torch.Tensor
    dual: torch.Tensor
    order: torch.Tensor | None = None

    def on(self, block: torch.Tensor, place: Place) -> torch.Tensor:
        """The block ``[copies, n, rest]`` with the element, or its inverse transpose, applied."""
        if place.order_only:
            return block if self.order is None else self.order.to(block) @ block
        return (self.dual if place.inverse else self.matrix).to(block) @ block

    def after(self, first: Element) -> Element:
        """This element after another."""
        if isinstance(first, Monomial):
            matrix, dual = first._both()  # noqa: SLF001  # the two forms know each other
            plain = Monomial(first.order).dense()
            return Dense(self.matrix @ matrix, self.dual @ dual, None if self.order is None else self.order @ plain)
        order = None if self.order is None or first.order is None else self.order @ first.order
        return Dense(self.matrix @ first.matrix, self.dual @ first.dual, order)

    def inverse(self) -> Dense:
        """The element that undoes it."""
        return Dense(self.dual.mT, self.matrix.mT)

    def taken(self, copies: torch.Tensor) -> Dense:
        """The elements of these copies."""
        return Dense(self.matrix[copies], self.dual[copies], None if self.order is None else self.order[copies])

    def dense(self) -> torch.Tensor:
        """``[copies, n, n]``."""
        return self.matrix


def identity(symmetry: Symmetry) -> Element:
    """Every unit to itself."""
    if symmetry.kind.mixes:
        eye = torch.eye(symmetry.n, dtype=torch.float64).repeat(symmetry.copies, 1, 1)
        return Dense(eye, eye)
    return Monomial(torch.arange(symmetry.n).repeat(symmetry.copies, 1))


def stays(element: Element) -> bool:
    """Whether a monomial element is the identity; elements that mix units are never told to be."""
    if isinstance(element, Dense):
        return False
    one = element.factor is None or bool((element.factor == 1).all())
    return one and bool((element.order == torch.arange(element.order.shape[1])).all())


def carried(tensor: torch.Tensor, moves: Sequence[tuple[Place, Element]]) -> torch.Tensor:
    """The tensor with elements applied one after another; the one given stays as it is."""
    own = tensor
    for place, element in moves:
        if stays(element):
            continue
        before = place.block(own)
        after = element.on(before, place)
        if after is before:
            continue
        whole = place.whole(own, after)
        if whole is None:
            own = own.clone() if own is tensor else own
            place.write(own, after)
        else:
            own = whole
    return own
