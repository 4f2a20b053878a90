"""Folds: what brings stored tensors to canonical form, declared once, and the tensors of that form as they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

from otfuse.program.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    Read: TypeAlias = Callable[[str], torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Vector:
    """Values of a stored tensor of one number per unit: ``flat[positions] + offset``."""

    tensor: str
    positions: NDArray[np.int64]
    offset: float = 0.0

    def read(self, read: Read) -> torch.Tensor:
        """The values ``[positions]``."""
        flat = read(self.tensor).reshape(-1)
        return flat[torch.from_numpy(self.positions).to(flat.device)] + self.offset


@dataclass(frozen=True, slots=True, eq=False)
class Times:
    """Slices ``positions`` along ``axis`` are multiplied by ``by``."""

    axis: int
    positions: NDArray[np.int64]
    by: Vector

    def apply(self, tensor: torch.Tensor, read: Read) -> torch.Tensor:
        """The tensor after it."""
        index = torch.from_numpy(self.positions).to(tensor.device)
        factors = tensor.new_ones(tensor.shape[self.axis]).index_copy(0, index, self.by.read(read))
        return tensor * factors.reshape([-1 if d == self.axis else 1 for d in range(tensor.ndim)])


@dataclass(frozen=True, slots=True, eq=False)
class Plus:
    """What the stored ``matrix`` makes of ``vector`` is added: its slices ``positions`` along ``axis`` times the vector's values."""

    matrix: str
    axis: int
    positions: NDArray[np.int64]
    vector: Vector

    def apply(self, tensor: torch.Tensor, read: Read) -> torch.Tensor:
        """The tensor after it."""
        matrix, values = read(self.matrix), self.vector.read(read)
        index = torch.from_numpy(self.positions).to(matrix.device)
        added = matrix.index_select(self.axis, index).movedim(self.axis, -1) @ values
        while added.ndim > tensor.ndim:  # a window of a convolution
            added = added.sum(-1)
        return tensor + added.reshape(tensor.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Over:
    """The values at ``positions`` of a tensor of one number per unit are divided by ``by``."""

    positions: NDArray[np.int64]
    by: Vector

    def apply(self, tensor: torch.Tensor, read: Read) -> torch.Tensor:
        """The tensor after it."""
        index = torch.from_numpy(self.positions).to(tensor.device)
        flat = tensor.reshape(-1)
        return flat.index_copy(0, index, flat[index] / self.by.read(read)).reshape(tensor.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Fill:
    """All values become ``value``."""

    value: float

    def apply(self, tensor: torch.Tensor, _read: Read) -> torch.Tensor:
        """The tensor after it."""
        return torch.full_like(tensor, self.value)


Change: TypeAlias = "Times | Plus | Over | Fill"


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """One step to the canonical form: ``changes`` by (first) name, all from the tensors as they are before it.

    ``gain`` is what it makes neutral. A fold is exact for all weights (where it divides: none of them zero), or not at all.
    """

    gain: str
    changes: Mapping[str, Change]

    @property
    def divides(self) -> bool:
        """Whether it needs gains that are not zero."""
        return any(isinstance(change, Over) for change in self.changes.values())

    def after(self, name: str, tensor: torch.Tensor, read: Read) -> torch.Tensor:
        """The tensor of that name after this fold alone; ``read`` gives those before it."""
        change = self.changes.get(name)
        return tensor if change is None else change.apply(tensor, read)


class CanonicalWeights(Weights):
    """The stored tensors of a model in canonical form, each folded when it is asked for, in float64, and not kept.

    Given in the type in which ``base`` gives them. ``ties``: every stored name -> its first. Folds act one after another.
    """

    def __init__(self, base: Mapping[str, torch.Tensor], folds: Sequence[Fold], ties: Mapping[str, str]) -> None:
        super().__init__({})
        self.base, self.folds, self._ties = base, tuple(folds), ties
        self.alike = getattr(base, "alike", {})
        self._by_name: dict[str, list[int]] = {}
        for at, fold in enumerate(self.folds):
            for name in fold.changes:
                self._by_name.setdefault(name, []).append(at)

    def __getitem__(self, name: str) -> torch.Tensor:
        first = self._ties.get(name, name)
        if first not in self._by_name:
            return self.base[name]
        own = self.base[name]
        return self.exact(first, own).to(own.dtype)

    def exact(self, name: str, own: torch.Tensor | None = None) -> torch.Tensor:
        """The same in float64. ``own`` is the tensor that ``base`` gives for it, where it was read before."""
        return self._before(len(self.folds), self._ties.get(name, name), own)

    def _before(self, stage: int, name: str, own: torch.Tensor | None = None) -> torch.Tensor:
        """The tensor of that first name before the fold of that number."""
        at = next((k for k in reversed(self._by_name.get(name, ())) if k < stage), None)
        if at is None:
            return (self.base[name].detach() if own is None else own).double()
        return self.folds[at].after(name, self._before(at, name, own), lambda other: self._before(at, other))

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)

    def __contains__(self, name: object) -> bool:
        return name in self.base

    def shape(self, name: str) -> torch.Size:
        """Its shape, without reading it."""
        return self._held.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """The type in which it is given, without reading it."""
        return self._held.dtype(name)

    def stored(self, name: str) -> torch.dtype:
        """The type in which it is stored, without reading it."""
        return self._held.stored(name)

    def blocks(self, name: str, size: int) -> Iterator[torch.Tensor]:
        """Its values in order, flat, ``size`` at a time; as they are stored, where no fold touches them."""
        if self._ties.get(name, name) in self._by_name:
            return super().blocks(name, size)
        return self._held.blocks(name, size)

    @property
    def _held(self) -> Weights:
        return self.base if isinstance(self.base, Weights) else Weights(self.base)
