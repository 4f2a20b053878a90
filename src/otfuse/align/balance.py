"""One model's canonical tensors with both sides of every invertible map made equally large.

Between two balanced models every exact map is orthogonal (Procrustes finds it), a permutation, signs or a turn: it keeps
lengths, and one squared distance serves all spaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, prod
from typing import TYPE_CHECKING

import torch

from otfuse.align.elements import Dense, Monomial, carried
from otfuse.core.symmetry import Kind
from otfuse.errors import SolveError
from otfuse.solve.procrustes import balance, balance_factors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from otfuse.align.elements import Element
    from otfuse.align.spaces import Spaces
    from otfuse.core.symmetry import Symmetry

_BALANCED = (Kind.INVERTIBLE, Kind.SCALING, Kind.POSITIVE, Kind.TURN)
_PART = 1 << 24  # values of a part
HELD = 1 << 30  # bytes that are kept
_RANK = 1e-9  # least over largest eigenvalue of a Gram matrix
_NOTHING = 1e-12  # of the largest eigenvalue: rounding of weights in single precision
_ROUNDS, _STOP = 200, 1e-12  # where balanced spaces meet in one tensor (channels of a chain of convolutions)


class Balanced(Mapping[str, torch.Tensor]):
    """Tensors, canonical and balanced, by first name; ``elements`` are those that balance, by space id.

    In ``dtype``: float64, or float32 where the model would not be held in float64.

    ``scales`` multiply tensors where they are compared (:meth:`parts`), by name. ``deficient`` names spaces of invertible maps of which one side leaves directions unused: there is nothing to balance by.

    Read anew each time, but for the first gibibyte of them: every round goes through all in the same order.
    """

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        names: Sequence[str],
        shapes: Mapping[str, tuple[int, ...]],
        spaces: Spaces,
    ) -> None:
        self.names, self.spaces = tuple(names), spaces
        self._weights, self._shapes = weights, shapes
        self.dtype = precision(sum(prod(shapes[name]) for name in names))
        self._kept: dict[tuple[str, int], torch.Tensor] = {}
        self._room = HELD
        self.scales: Mapping[str, float] = {}
        self.elements: dict[str, Element] = {}
        self.deficient: list[str] = []
        self._balance()

    def parts(self, name: str) -> Iterator[torch.Tensor]:
        """The tensor in parts along an axis that no space touches (whole where it is small, or has none)."""
        shape, axis = self._shapes[name], self._free_axis(name)
        size = prod(shape)
        step = 1 if not size or axis is None else max(1, shape[axis] * _PART // size)
        count = 1 if axis is None or size <= _PART else -(-shape[axis] // step)
        whole: torch.Tensor | None = None
        for i in range(count):
            part = self._kept.get((name, i))
            if part is None:
                whole = self._exact(name) if whole is None else whole
                part = whole if count == 1 or axis is None else _narrowed(whole, axis, i * step, step)
                part = self._moved(name, part.to("cpu", torch.float64))
                part = (part * self.scales[name] if name in self.scales else part).to(self.dtype)
                if self._room >= part.nbytes:
                    self._kept[name, i] = part
                    self._room -= part.nbytes
            yield part

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor whole, in the type in which it is given: a model that computes the same."""
        if name not in self._shapes:
            return self._weights[name]
        return self._moved(name, self._exact(name).to("cpu", torch.float64)).to(self._weights[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def whole(self) -> Mapping[str, torch.Tensor]:
        """The same in memory where it is small, for a program that reads them again with every batch."""
        if self.dtype != torch.float64:
            return self
        return {name: self[name] for name in self}

    def squares(self, whose: str = "a model") -> dict[str, float]:
        """The squared length of every tensor; SolveError naming the first of ``whose`` that is not finite."""
        found = dict[str, float]()
        for name in self.names:
            found[name] = sum(float(part.square().sum(dtype=torch.float64)) for part in self.parts(name))
            if not isfinite(found[name]):
                raise SolveError(
                    f"aligned: {name} of {whose} holds numbers that are not finite; check that model's weights"
                )
        return found

    def forget(self) -> None:
        """Nothing is kept any more."""
        self._kept.clear()
        self._room = HELD

    def _exact(self, name: str) -> torch.Tensor:
        exact = getattr(self._weights, "exact", None)  # folded tensors before they are rounded
        return self._weights[name].detach() if exact is None else exact(name)

    def _moved(self, name: str, part: torch.Tensor) -> torch.Tensor:
        return carried(
            part, [(place, self.elements[key]) for key, place in self.spaces.at.get(name, ()) if key in self.elements]
        )

    def _free_axis(self, name: str) -> int | None:
        taken = {axis for _, place in self.spaces.at.get(name, ()) for axis in (place.axis, place.batch_axis)}
        free = [axis for axis in range(len(self._shapes[name])) if axis not in taken]
        return max(free, key=lambda axis: self._shapes[name][axis], default=None)

    def _balance(self) -> None:
        wanted = [s for s in self.spaces.all.values() if s.kind in _BALANCED]
        for _ in range(_ROUNDS if _meet(self.spaces, wanted) else 1):
            change = 0.0
            for symmetry, (writes, reads) in self._sides(wanted):
                found = _element(symmetry, writes, reads)
                if found is None:
                    wanted = [s for s in wanted if s is not symmetry]
                    self.deficient.append(symmetry.space.name)
                    self.elements.pop(symmetry.space.id, None)
                    continue
                change = max(change, float((found.dense().diagonal(dim1=1, dim2=2) - 1).abs().max()))
                key = symmetry.space.id
                self.elements[key] = found.after(self.elements[key]) if key in self.elements else found
            self.forget()
            if change < _STOP:
                return

    def _sides(self, wanted: Sequence[Symmetry]) -> Iterator[tuple[Symmetry, tuple[torch.Tensor, torch.Tensor]]]:
        """Gram matrices (or squared lengths, where units are not mixed) of what writes and of what reads; spaces that lack a side left out."""
        sums: dict[tuple[str, bool], torch.Tensor] = {}
        known = {s.space.id: s for s in wanted}
        for name in self.names:
            for part in self.parts(name) if any(key in known for key, _ in self.spaces.at.get(name, ())) else ():
                for key, place in self.spaces.at[name]:
                    if key in known and not place.order_only:
                        block = place.block(part).double()
                        own = block @ block.mT if known[key].kind.mixes else block.square().sum(2)
                        sums[key, place.inverse] = sums.get((key, place.inverse), 0) + own
        for key, symmetry in known.items():
            if (key, False) in sums and (key, True) in sums:
                yield symmetry, (sums[key, False], sums[key, True])


def _narrowed(tensor: torch.Tensor, axis: int, start: int, length: int) -> torch.Tensor:
    return tensor.narrow(axis, start, min(length, tensor.shape[axis] - start))


def precision(values: int) -> torch.dtype:
    """What a model of that many values is compared in."""
    return torch.float64 if 8 * values <= HELD else torch.float32


def _element(symmetry: Symmetry, writes: torch.Tensor, reads: torch.Tensor) -> Element | None:
    """The element that balances; None where a side leaves directions unused: there is nothing to balance by."""
    if symmetry.kind is Kind.INVERTIBLE:
        read = _range(reads)  # what nothing reads, and then what nothing writes, changes nothing: it is taken out
        writes = read @ writes @ read
        used = _range(writes)
        writes, reads = (_filled(used @ gram @ used, used) for gram in (writes, reads))
        if any(_is_deficient(gram) for gram in (writes, reads)):
            return None
        matrix = balance(writes, reads)
        return Dense(matrix @ read, torch.linalg.inv(matrix) @ used)  # symmetric
    if symmetry.kind is Kind.TURN:
        factor = balance_factors(*(g.diagonal(dim1=1, dim2=2).sum(1) for g in (writes, reads)))
        eye = torch.eye(symmetry.n, dtype=torch.float64)
        return Dense(eye * factor[:, None, None], eye / factor[:, None, None])
    factor = balance_factors(writes, reads)
    return Monomial(torch.arange(symmetry.n).repeat(symmetry.copies, 1), factor)


def _range(gram: torch.Tensor) -> torch.Tensor:
    """The projection on what a Gram matrix is of, copy by copy: all, unless a model has fewer units than it has room for."""
    values, vectors = torch.linalg.eigh(gram)
    kept = (values > _NOTHING * values[:, -1:]).to(values)
    found: torch.Tensor = (vectors * kept[:, None, :]) @ vectors.mT
    return found


def _filled(gram: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """The matrix with its largest eigenvalue in all directions that are not used (one, where none is)."""
    largest = torch.linalg.eigvalsh(gram)[:, -1, None, None]
    rest = torch.eye(gram.shape[-1], dtype=gram.dtype) - used
    return gram + rest * torch.where(largest > 0, largest, 1.0)


def _is_deficient(gram: torch.Tensor) -> bool:
    values = torch.linalg.eigvalsh(gram)
    return not bool((values[:, 0] > _RANK * values[:, -1]).all())


def _meet(spaces: Spaces, wanted: Sequence[Symmetry]) -> bool:
    """Whether two balanced spaces act on one tensor along different axes."""
    keys = {s.space.id for s in wanted}
    return any(len({place.axis for key, place in own if key in keys}) > 1 for own in spaces.at.values())
