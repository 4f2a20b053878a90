"""Elements of the groups of symmetries: drawn at random, and acting on one stored tensor at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from otfuse.core.symmetry import Kind
from otfuse.flow.proof.act import number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from otfuse.core.symmetry import Slot, Symmetry


@dataclass(frozen=True, slots=True, eq=False)
class Element:
    """One element ``M[copies, n, n]`` of the group of a symmetry.

    It is dense (``maps``), or costs no more than it holds: first units change places (``order[copies, n]``: new unit ``u``
    is old unit ``order[c, u]``), then each is multiplied (``factors[copies, n]``), then all are reflected at the plane
    across ``normal[copies, n]`` (of length one).
    """

    symmetry: Symmetry
    order: torch.Tensor | None = None
    factors: torch.Tensor | None = None
    normal: torch.Tensor | None = None
    maps: torch.Tensor | None = None
    back: torch.Tensor | None = None  # the inverse transposes of dense maps

    @property
    def dense(self) -> torch.Tensor:
        """``M[copies, n, n]``."""
        if self.maps is not None:
            return self.maps
        copies, size = self.symmetry.copies, self.symmetry.n
        unit = torch.eye(size, dtype=torch.float64).expand(copies, size, size)
        made: torch.Tensor = unit if self.order is None else unit[0][self.order]
        return self._on(made, inverse=False, order_only=False)

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor of that name moved at every slot of the symmetry; the one given stays as it is."""
        for slot, places in _together(s for s in self.symmetry.slots if s.tensor == name):
            if slot.order_only and self.symmetry.kind.mixes:
                continue
            sources = places if self.order is None else torch.take_along_dim(places, self.order[:, :, None], 1)
            tensor = self._few(tensor, slot, places) if self._sparse else self._moved(tensor, slot, places, sources)
        return tensor

    @property
    def _sparse(self) -> bool:
        """Whether some units are multiplied, and nothing else happens; not where factors are learned, which may be one for now."""
        others = self.order is not None or self.normal is not None or self.maps is not None
        if others or self.factors is None or self.factors.requires_grad:
            return False
        return bool((self.factors == 1).any())

    def _on(self, block: torch.Tensor, *, inverse: bool, order_only: bool) -> torch.Tensor:
        """``block[copies, n, rest]``, its units in their new places, moved by the rest of ``M`` (or its inverse transpose)."""
        if self.maps is not None:
            return torch.bmm(self._matrices(inverse=inverse, order_only=order_only).to(block), block)
        if order_only:
            return block
        if self.factors is not None:
            factors = self.factors.to(block)[:, :, None]
            block = block / factors if inverse else block * factors
        if self.normal is not None:
            normal = self.normal.to(block)
            block = torch.baddbmm(block, normal[:, :, None], normal[:, None, :] @ block, alpha=-2)
        return block

    def _matrices(self, *, inverse: bool, order_only: bool) -> torch.Tensor:
        assert self.maps is not None  # the caller knows
        if order_only:
            return (self.maps.detach().abs() > _NOTHING).to(self.maps)
        if not inverse:
            return self.maps
        return torch.linalg.inv(self.maps).mT if self.back is None else self.back

    def _few(self, tensor: torch.Tensor, slot: Slot, places: torch.Tensor) -> torch.Tensor:
        """The units that are multiplied; no others are touched."""
        assert self.factors is not None  # sparse
        if slot.order_only:
            return tensor
        copy, unit = (self.factors != 1).nonzero().unbind(1)
        index = places[copy, unit].reshape(-1).to(tensor.device)
        factors = (1 / self.factors if slot.inverse else self.factors)[copy, unit].to(tensor)
        factors = factors.repeat_interleave(places.shape[2]).reshape(-1, *[1] * (tensor.ndim - 1))
        if slot.batch_axis is None:
            front = tensor.movedim(slot.axis, 0)
            return front.index_put((index,), front[index] * factors).movedim(0, slot.axis)
        front, copy = _batched(tensor, slot), copy.repeat_interleave(places.shape[2]).to(tensor.device)
        return _unbatched(front.index_put((copy, index), front[copy, index] * factors.squeeze(-1)), slot)

    def _moved(self, tensor: torch.Tensor, slot: Slot, places: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
        """All units, each copy as one block."""
        copies, size = places.shape[:2]
        how = {"inverse": slot.inverse, "order_only": slot.order_only}
        target, source = (x.reshape(copies, -1).to(tensor.device) for x in (places, sources))
        if slot.batch_axis is None:
            block = tensor.index_select(slot.axis, source.reshape(-1)).movedim(slot.axis, 0)
            new = self._on(block.reshape(copies, size, -1), **how).reshape(block.shape).movedim(0, slot.axis)
            index = target.reshape(-1)
            if len(index) == tensor.shape[slot.axis] and bool((index.diff() == 1).all()):
                return new
            return tensor.index_copy(slot.axis, index, new)
        front, copy = _batched(tensor, slot), torch.arange(copies, device=tensor.device)[:, None]
        block = front[copy, source]
        new = self._on(block.reshape(copies, size, -1), **how).reshape(block.shape)
        return _unbatched(front.index_put((copy, target), new), slot)


def _batched(tensor: torch.Tensor, slot: Slot) -> torch.Tensor:
    assert slot.batch_axis is not None  # the caller knows
    return tensor.movedim((slot.batch_axis, slot.axis), (0, 1))


def _unbatched(front: torch.Tensor, slot: Slot) -> torch.Tensor:
    assert slot.batch_axis is not None  # the caller knows
    return front.movedim((0, 1), (slot.batch_axis, slot.axis))


_NOTHING = 1e-12  # entries of a monomial map that are none


def act(
    symmetry: Symmetry, maps: torch.Tensor, name: str, tensor: torch.Tensor, *, back: torch.Tensor | None = None
) -> torch.Tensor:
    """The stored tensor ``name`` with ``maps[copies, n, n]`` applied at every slot of the symmetry, in the tensor's type.

    Differentiable in both. ``back`` are the inverse transposes of the maps, where the caller knows them (an orthogonal map
    is its own). Gains move with the permutation of a monomial map, and not at all with maps that mix units.
    """
    return Element(symmetry, maps=maps, back=back)(name, tensor)


def draw(symmetry: Symmetry, seed: int) -> torch.Tensor:
    """A random member of the group, ``[copies, n, n]`` in float64, of condition at most 3."""
    return element(symmetry, seed).dense


def element(symmetry: Symmetry, seed: int) -> Element:
    """A random member of the group. Monomial ones move every unit, and none has one sign only."""
    chance = _chance(symmetry, seed)
    copies, size, kind = symmetry.copies, symmetry.n, symmetry.kind
    if kind is Kind.TURN:
        return Element(symmetry, maps=_turns(copies, chance))
    if not kind.mixes:
        return Element(symmetry, _order(copies, size, chance), _factors(kind, copies, size, chance))
    if kind is Kind.ORTHOGONAL_ONES:
        maps = _fixing_ones(_orthogonal(copies, size - 1, chance))
    else:
        maps = _orthogonal(copies, size, chance)
    if kind is not Kind.INVERTIBLE:
        return Element(symmetry, maps=maps, back=maps)
    sizes = torch.exp(torch.rand(copies, 1, size, generator=chance, dtype=torch.float64) - 0.5)
    other = _orthogonal(copies, size, chance)
    return Element(symmetry, maps=maps * sizes @ other, back=maps / sizes @ other)


def cheap(symmetry: Symmetry, seed: int) -> Element:
    """A member that costs no more than it holds: units keep their places, are multiplied and reflected, as far as the group goes."""
    if symmetry.kind is Kind.TURN:
        return element(symmetry, seed)
    as_factors = {Kind.INVERTIBLE: Kind.SCALING, Kind.ORTHOGONAL: Kind.SIGNS, Kind.ORTHOGONAL_ONES: Kind.PERMUTATION}
    kind = as_factors.get(symmetry.kind, symmetry.kind)
    factors = _factors(kind, symmetry.copies, symmetry.n, _chance(symmetry, seed))
    normal = reflection(symmetry, seed) if symmetry.kind.mixes and symmetry.n > 1 else None
    return Element(symmetry, factors=factors, normal=normal)


def reflection(symmetry: Symmetry, seed: int) -> torch.Tensor:
    """Random ``normal[copies, n]`` across the all-ones; of two units any, for of those across the ones it is their exchange."""
    copies, size = symmetry.copies, symmetry.n
    normal = torch.randn(copies, size, generator=_chance(symmetry, seed), dtype=torch.float64)
    if size > 2 or symmetry.kind is Kind.ORTHOGONAL_ONES:
        normal = normal - normal.mean(1, keepdim=True)
    lengths: torch.Tensor = normal.norm(dim=1, keepdim=True)
    return normal / lengths


def _chance(symmetry: Symmetry, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(number(seed, "element", symmetry.space.id) % 2**63)


def _order(copies: int, size: int, chance: torch.Generator) -> torch.Tensor:
    """A cycle through all units of every copy."""
    cycles = [torch.randperm(size, generator=chance) for _ in range(copies)]
    return torch.stack([torch.empty_like(c).scatter_(0, c, c.roll(1)) for c in cycles])


def _factors(kind: Kind, copies: int, size: int, chance: torch.Generator) -> torch.Tensor | None:
    if kind is Kind.PERMUTATION:
        return None
    factors = torch.exp(torch.rand(copies, size, generator=chance, dtype=torch.float64) - 0.5)
    if kind is Kind.SIGNS:
        factors = torch.ones_like(factors)
    if kind is not Kind.POSITIVE:
        signs = torch.where(torch.rand(copies, size, generator=chance) < 0.5, -1.0, 1.0).double()
        signs[:, 0], signs[:, -1] = -1.0, 1.0 if size > 1 else -1.0  # few signs are often alike
        factors = factors * signs
    return factors


def _orthogonal(copies: int, size: int, chance: torch.Generator) -> torch.Tensor:
    """Uniform (Haar): the signs of the triangle's diagonal belong to the orthogonal factor (Mezzadri 2007)."""
    drawn = torch.randn(copies, size, size, generator=chance, dtype=torch.float64)
    found, triangle = torch.linalg.qr(drawn)
    signs = triangle.diagonal(dim1=1, dim2=2).sign()[:, None, :]
    made: torch.Tensor = found * signs
    return made


def _fixing_ones(inner: torch.Tensor) -> torch.Tensor:
    """Maps ``[copies, n, n]`` that do ``inner[copies, n - 1, n - 1]`` in the plane across the all-ones vector."""
    size = inner.shape[1] + 1
    # the reflection that takes the first axis to the ones
    normal = torch.full((size,), size**-0.5, dtype=torch.float64)
    normal[0] -= 1
    normal /= normal.norm().clamp_min(_NOTHING)
    basis = torch.eye(size, dtype=torch.float64) - 2 * normal[:, None] * normal
    maps = torch.eye(size, dtype=torch.float64).repeat(len(inner), 1, 1)
    maps[:, 1:, 1:] = inner
    return basis @ maps @ basis


def _turns(copies: int, chance: torch.Generator) -> torch.Tensor:
    angle = 0.5 + 2 * torch.rand(copies, generator=chance, dtype=torch.float64)
    size = torch.exp(torch.rand(copies, generator=chance, dtype=torch.float64) - 0.5)
    cos, sin = size * angle.cos(), size * angle.sin()
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)


def _together(slots: Iterable[Slot]) -> Iterator[tuple[Slot, torch.Tensor]]:
    """Slots of one axis that act alike as one, their positions ``[copies, n, width]``."""
    groups: dict[tuple[object, ...], list[Slot]] = {}
    for slot in slots:
        groups.setdefault((slot.axis, slot.batch_axis, slot.inverse, slot.order_only), []).append(slot)
    for alike in groups.values():
        yield alike[0], torch.from_numpy(np.stack([slot.positions for slot in alike], 2))
