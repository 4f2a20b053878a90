"""Which units arrive where: numbers of units laid out like the values that carry them.

A value of the program carries, for every element, the number of the layer-level node that wrote the unit (high bits)
and the unit's number in that node (low bits). Layout operators are simply run on these numbers, so that what a view,
a slice or an expand does to units is never written twice. The tensors are expanded, so they cost next to nothing until
an operator copies them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_BITS = 32
_LOW = (1 << _BITS) - 1
NOTHING = -1


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """``ids`` of a value's shape; ``normalised``: divided by a reduction over its own units."""

    ids: torch.Tensor
    normalised: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A stored tensor up to layout: ``index[axis]``, of the value's shape, is the position along that axis."""

    tensor: str
    index: tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Attention scores: what query and key carried. ``reduced`` values are those that lost their units."""

    query: Units
    key: Units


@dataclass(frozen=True, slots=True, eq=False)
class Reduced:
    """A reduction over units: what is multiplied by it is normalised."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One place of a value (the commonest kind of token), seen along the dimensions that hold units.

    ``node`` wrote the units; ``dims`` hold them; ``units`` (their numbers) has the shape of those dimensions;
    ``place`` is the index chosen in every other dimension.
    """

    node: int
    dims: tuple[int, ...]
    units: NDArray[np.int64]
    place: dict[int, int]


def numbered(node: int, shape: Sequence[int], dims: Sequence[int]) -> torch.Tensor:
    """Fresh numbers of a node's units, row-major over ``dims``, the same at every place."""
    sizes = [shape[d] for d in dims]
    own = torch.arange(prod(sizes)).reshape(sizes) + (node << _BITS)
    full = [1] * len(shape)
    for d, n in zip(dims, sizes, strict=True):
        full[d] = n
    order = sorted(range(len(dims)), key=lambda i: dims[i])
    return own.permute(order).reshape(full).expand(tuple(shape))


def positions_of(shape: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """For every axis of a stored tensor the position along it, expanded to the tensor's shape."""
    rank = len(shape)
    return tuple(
        torch.arange(n).reshape([n if d == axis else 1 for d in range(rank)]).expand(tuple(shape))
        for axis, n in enumerate(shape)
    )


def nodes_of(ids: torch.Tensor) -> set[int]:
    """Nodes whose units the value carries."""
    return {int(i) for i in torch.unique(squeezed(ids) >> _BITS)} - {NOTHING}


def written_by(ids: torch.Tensor, node: int) -> torch.Tensor:
    """Where the value carries units of this node."""
    return (ids >> _BITS) == node


def renumbered(ids: torch.Tensor, here: torch.Tensor, node: int, units: NDArray[np.int64]) -> torch.Tensor:
    """What ``here`` is unit ``i`` becomes unit ``units[i]`` of ``node`` (nothing where that is negative)."""
    found = torch.from_numpy(units)[torch.where(here, ids & _LOW, 0)]
    return torch.where(found < 0, NOTHING, found + (node << _BITS))


def varying(values: torch.Tensor) -> tuple[int, ...]:
    """Dimensions along which the numbers change."""
    kept = squeezed(values)
    return tuple(d for d in range(kept.ndim) if kept.shape[d] > 1 and bool((kept != kept.narrow(d, 0, 1)).any()))


def unit_dims(ids: torch.Tensor) -> tuple[int, ...]:
    """Dimensions along which the number of the unit changes (those with different nodes only are places)."""
    kept = squeezed(ids)
    return varying(torch.where(kept < 0, 0, kept & _LOW))


def row(ids: torch.Tensor, extra: Sequence[int] = (), writer: int | None = None) -> Row | None:
    """The commonest row of a value: the units at a place written by ``writer``, or by the node that writes most."""
    dims = tuple(sorted(set(unit_dims(ids)) | set(extra)))
    ids = squeezed(ids, keep=dims)
    first = ids
    for d in dims:
        first = first.narrow(d, 0, 1)
    writers = (first >> _BITS).reshape(-1)
    known = writers[writers >= 0]
    if not len(known):
        return None
    node = int(known.mode().values) if writer is None else writer
    places = [d for d in range(ids.ndim) if d not in dims]
    flat = int((writers == node).nonzero()[0])
    chosen = dict(zip(places, np.unravel_index(flat, [ids.shape[d] for d in places]) if places else (), strict=True))
    sub = ids
    for d in sorted(places, reverse=True):
        sub = sub.select(d, int(chosen[d]))
    if not bool(((sub >> _BITS) == node).all()):
        return None
    return Row(node, dims, (sub & _LOW).numpy().copy(), {d: int(i) for d, i in chosen.items()})


def at_place(index: torch.Tensor, found: Row) -> NDArray[np.int64] | None:
    """Positions along an axis of a stored tensor at the place of a row; None if they differ between places."""
    places = [d for d in range(index.ndim) if d not in found.dims]
    if any(d in places for d in varying(index)):
        return None
    for d in sorted(places, reverse=True):
        index = index.select(d, 0)
    return index.numpy().astype(np.int64).reshape(-1)


def compact(ids: torch.Tensor) -> torch.Tensor:
    """The same numbers, expanded along the dimensions (the batch above all) on which they do not depend."""
    kept = squeezed(ids)
    for d in range(kept.ndim):
        if kept.shape[d] > 1 and bool((kept == kept.narrow(d, 0, 1)).all()):
            kept = kept.narrow(d, 0, 1)
    return kept.clone().expand(ids.shape)


def squeezed(ids: torch.Tensor, keep: Sequence[int] = ()) -> torch.Tensor:
    """The numbers once along the dimensions on which they are expanded, other than ``keep``."""
    for d in range(ids.ndim):
        if ids.stride(d) == 0 and ids.shape[d] > 1 and d not in keep:
            ids = ids.narrow(d, 0, 1)
    return ids
