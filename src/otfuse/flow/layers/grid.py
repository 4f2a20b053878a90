"""The token axis of a value: which places are class-like tokens, and which are patches of a grid."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from otfuse.core.graph import Tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otfuse.flow.algebra.axes import Algebra, Axis

_SPATIAL = {"spatial", "input", "strided"}


def token_axis(algebra: Algebra, axes: Sequence[Axis], unit_dims: Sequence[int]) -> Tokens | None:
    """The dimension that lays single tokens and a two-dimensional grid end to end, if the value has one."""
    for dim, axis in enumerate(axes):
        if dim == 0 or dim in unit_dims:
            continue
        found = _laid_out(algebra, axis)
        if found is not None:
            extra, grid = found
            return Tokens(dim, extra, grid)
    return None


def _laid_out(algebra: Algebra, axis: Axis) -> tuple[np.ndarray, np.ndarray] | None:
    flat = algebra.flat(axis)
    parts = algebra.parts(flat[0]) if len(flat) == 1 and algebra.is_sum(flat[0]) else ()
    extra, grid, offset = list[int](), None, 0
    for part in parts:
        sizes = [algebra.cell(leaf).size for leaf in algebra.flat(part)]
        if not sizes:
            extra.append(offset)
        elif len(sizes) == 2 and grid is None and _is_spatial(algebra, part):  # rows and columns
            grid = offset + np.arange(prod(sizes)).reshape(sizes)
        elif grid is None and len(sizes) == 1 and sizes[0] <= _FEW:
            extra.extend(range(offset, offset + sizes[0]))
        else:
            return None
        offset += prod(sizes)
    return (np.asarray(extra, np.int64), grid) if grid is not None and extra else None


_FEW = 8  # register tokens laid down together


def _is_spatial(algebra: Algebra, axis: Axis) -> bool:
    return all(algebra.cell(leaf).hard & _SPATIAL for leaf in algebra.flat(axis))
