"""From elements of spaces to instructions for every stored tensor."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse

from otfuse.align import matrix
from otfuse.align.elements import Dense, Monomial, stays
from otfuse.core.alignment import AxisMap, Carry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otfuse.align.elements import Element, Place
    from otfuse.align.matrix import Matrix

    Moves = Sequence[tuple[Place, Element]]


def carries(name: str, shape: Sequence[int], moves: Moves) -> tuple[Carry, ...]:
    """How a source's tensor is carried: one block, or one for every slice where copies lie along an axis (experts)."""
    moves = [(place, element) for place, element in moves if not stays(element)]
    sliced = {place.batch_axis for place, _ in moves} - {None}
    if not sliced:
        axes = [_axis(d, shape[d], [m for m in moves if m[0].axis == d]) for d in sorted({p.axis for p, _ in moves})]
        return (Carry(name, tuple(axes)),) if axes else ()
    batch = next(iter(sliced))
    assert batch is not None and len(sliced) == 1  # noqa: PT018  # one axis counts the copies
    order = _order([m for m in moves if m[0].axis == batch], shape[batch])
    found = []
    for copy in range(shape[batch]):
        own = [(place, _slice(place, element, copy)) for place, element in moves if place.axis != batch]
        axes = [AxisMap(batch, matrix.identity(1), np.array([copy]), order[copy : copy + 1])]
        axes += [_axis(d, shape[d], [m for m in own if m[0].axis == d], copy) for d in sorted({p.axis for p, _ in own})]
        found.append(Carry(name, tuple(axes)))
    return tuple(found)


def _slice(place: Place, element: Element, copy: int) -> Element:
    return element if place.batch_axis is None else element.taken(torch.tensor([copy]))


def _order(moves: Moves, size: int) -> np.ndarray:
    """Which slice of the source each slice of the anchor is."""
    order = np.arange(size)
    for place, element in moves:
        assert isinstance(element, Monomial)  # whole experts are assigned
        for c, places in enumerate(place.positions.numpy()):
            order[places.reshape(-1)] = order[places[element.order[c].numpy()].reshape(-1)]
    return order


def _axis(axis: int, size: int, moves: Moves, copy: int | None = None) -> AxisMap:
    every = np.arange(size)
    parts = [_matrix(place, element, size, copy) for place, element in moves]
    return AxisMap(axis, matrix.compact(reduce(_after, parts)), every, every)


def _after(first: Matrix, then: Matrix) -> Matrix:
    """The product ``then @ first``."""
    if isinstance(first, torch.Tensor) or isinstance(then, torch.Tensor):
        one, other = (m.numpy() if isinstance(m, torch.Tensor) else m for m in (first, then))
        return torch.from_numpy(np.asarray(other @ one))
    return sparse.csr_array(then @ first)


def _matrix(place: Place, element: Element, size: int, copy: int | None) -> Matrix:
    """The element on all places of an axis, ``[size, size]``: what it does not touch stays."""
    at = place.positions.numpy()
    at = at if copy is None or place.batch_axis is None else at[copy : copy + 1]
    rows: Any
    if isinstance(element, Monomial):
        order = element.order.numpy()
        rows, columns = at, np.take_along_axis(at, order[:, :, None], 1)
        values = np.ones(at.shape)
        if element.factor is not None and not place.order_only:
            factor = element.factor.numpy()[:, :, None]
            values = values * (1 / factor if place.inverse else factor)
    else:
        chosen = _chosen(element, place)
        if chosen is None:
            return matrix.identity(size)
        if at.shape == (1, size, 1) and bool((at.reshape(-1) == np.arange(size)).all()):
            return chosen[0]
        rows, columns = np.broadcast_arrays(at[:, :, None, :], at[:, None, :, :])
        values = np.broadcast_to(chosen.numpy()[..., None], rows.shape)
    rest = np.setdiff1d(np.arange(size), at)
    index = [np.concatenate([np.ravel(own), rest]) for own in (rows, columns)]
    data = np.concatenate([np.ravel(values), np.ones(len(rest))])
    return sparse.csr_array((data, (index[0], index[1])), shape=(size, size))


def _chosen(element: Dense, place: Place) -> torch.Tensor | None:
    if place.order_only:
        return element.order
    return element.dual if place.inverse else element.matrix
