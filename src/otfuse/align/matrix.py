"""Matrices ``[anchor unit, source unit]`` that cost what they hold.

A coupling that spreads mass over many pairs is a dense tensor; an identity, a permutation, blocks and all else that is
mostly zero are SciPy's compressed rows: the identity on a vocabulary takes a few bytes per token. Everything is float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Matrix: TypeAlias = "torch.Tensor | sparse.csr_array"

_SPARSE = 1 / 8  # of the places: below, compressed rows are smaller and faster


def identity(size: int) -> Matrix:
    """Every unit to itself."""
    return sparse.csr_array(sparse.eye_array(size, format="csr"))


def is_identity(matrix: Matrix) -> bool:
    """Whether it is, without looking at a dense one: those that are identities are never dense."""
    if isinstance(matrix, torch.Tensor) or matrix.shape[0] != matrix.shape[1] or matrix.nnz != matrix.shape[0]:
        return False
    return bool((matrix.data == 1).all() and (matrix.indices == np.arange(matrix.shape[0])).all())


def overlap(anchor: int, source: int) -> Matrix:
    """Mass of the monotone coupling of two uniform rows of units."""
    ends = np.unique(np.concatenate([np.arange(anchor + 1) * source, np.arange(source + 1) * anchor]))
    rows, columns = ends[:-1] // source, ends[:-1] // anchor
    mass = np.diff(ends) / (anchor * source)
    return sparse.csr_array((mass, (rows, columns)), shape=(anchor, source))


def compact(matrix: Matrix) -> Matrix:
    """The same matrix in the form that is smaller."""
    if isinstance(matrix, torch.Tensor):
        if int(matrix.count_nonzero()) <= _SPARSE * matrix.numel():
            return sparse.csr_array(matrix.numpy())
        return matrix
    return dense(matrix) if matrix.nnz > 2 * _SPARSE * matrix.shape[0] * matrix.shape[1] else matrix


def dense(matrix: Matrix) -> torch.Tensor:
    """The matrix written out."""
    return matrix if isinstance(matrix, torch.Tensor) else torch.from_numpy(matrix.toarray())


def take(matrix: Matrix, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Matrix:
    """Some of its rows and columns, in the order given."""
    if isinstance(matrix, torch.Tensor):
        return matrix[torch.from_numpy(rows)][:, torch.from_numpy(columns)]
    return matrix[rows][:, columns]


def scaled(matrix: Matrix, rows: torch.Tensor | float) -> Matrix:
    """Every row times its number, or all times one number."""
    if isinstance(matrix, torch.Tensor):
        return matrix * (rows[:, None].to(matrix) if isinstance(rows, torch.Tensor) else rows)
    if isinstance(rows, torch.Tensor):
        return sparse.csr_array(sparse.diags_array(rows.double().numpy()) @ matrix)
    return matrix * rows


def plus(one: Matrix, other: Matrix) -> Matrix:
    """The sum: dense if either is."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return dense(one) + dense(other)
    return compact(one + other)


def masked(matrix: Matrix, rows: NDArray[np.bool_], columns: NDArray[np.bool_]) -> Matrix:
    """Zeros outside the rows and columns that are on."""
    if rows.all() and columns.all():
        return matrix
    if isinstance(matrix, torch.Tensor):
        return matrix * torch.from_numpy(rows[:, None] & columns)
    return sparse.csr_array(sparse.diags_array(rows.astype(float)) @ matrix @ sparse.diags_array(columns.astype(float)))


def times(matrix: Matrix, pattern: Matrix, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Matrix:
    """Entry ``(i, j)`` times ``pattern[rows[i], columns[j]]``."""
    if isinstance(matrix, torch.Tensor):
        return compact(matrix * dense(take(pattern, rows, columns)))
    entries = matrix.tocoo()
    factors = np.asarray(pattern[rows[entries.row], columns[entries.col]]).reshape(-1)
    made = sparse.csr_array((entries.data * factors, (entries.row, entries.col)), shape=matrix.shape)
    made.eliminate_zeros()
    return made


def blocks(matrices: Sequence[Matrix]) -> Matrix:
    """Block-diagonal; one block is itself."""
    if len(matrices) == 1:
        return matrices[0]
    parts = [m.numpy() if isinstance(m, torch.Tensor) else m for m in matrices]
    return compact(sparse.csr_array(sparse.block_diag(parts, format="csr")))


def sums(matrix: Matrix, rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]) -> Matrix:
    """All entries added up by the group of their row and of their column."""
    left = sparse.csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(shape[0], len(rows)))
    right = sparse.csr_array(
        (np.ones(len(columns)), (np.arange(len(columns)), columns)), shape=(len(columns), shape[1])
    )
    if isinstance(matrix, torch.Tensor):
        return torch.from_numpy(np.ascontiguousarray((right.T @ (left @ matrix.numpy()).T).T))
    return sparse.csr_array(left @ matrix @ right)


def widened(matrix: Matrix, width: int) -> Matrix:
    """Every unit ``width`` places wide, places in order."""
    return matrix if width == 1 else sparse.csr_array(sparse.kron(_compressed(matrix), sparse.eye_array(width)))


def averages(matrix: Matrix) -> Matrix:
    """Rows that sum to one."""
    return _divided(matrix, 1)


def shares(matrix: Matrix) -> Matrix:
    """Columns that sum to one."""
    return _divided(matrix, 0)


def along(matrix: Matrix, tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """``new[..., i, ...] = sum_j matrix[i, j] tensor[..., j, ...]`` along an axis, in the tensor's type."""
    if is_identity(matrix):
        return tensor
    moved = tensor.movedim(axis, 0)
    flat = moved.reshape(len(moved), -1)
    if isinstance(matrix, torch.Tensor):
        own = matrix.to(tensor)
        made = own @ flat if axis == 0 else (flat.T @ own.T).T  # rows stay rows where the axis is the last
    elif (order := _selection(matrix)) is not None:
        made = flat.index_select(0, torch.from_numpy(order).to(tensor.device))
    else:
        kind = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        made = torch.from_numpy(matrix.astype(str(kind).removeprefix("torch.")) @ flat.to("cpu", kind).numpy()).to(
            tensor
        )
    return made.reshape(matrix.shape[0], *moved.shape[1:]).movedim(0, axis)


def _divided(matrix: Matrix, axis: int) -> Matrix:
    if isinstance(matrix, torch.Tensor):
        return matrix / matrix.sum(axis, keepdim=True)
    factors = sparse.diags_array(1 / matrix.sum(axis))
    return sparse.csr_array(factors @ matrix if axis == 1 else matrix @ factors)


def _selection(matrix: sparse.csr_array) -> NDArray[np.int64] | None:
    """Which source unit each anchor unit is, if every one is exactly one."""
    if matrix.nnz != matrix.shape[0] or (matrix.data != 1).any() or (np.diff(matrix.indptr) != 1).any():
        return None
    return np.asarray(matrix.indices, np.int64)


def _compressed(matrix: Matrix) -> sparse.csr_array:
    return sparse.csr_array(matrix.numpy()) if isinstance(matrix, torch.Tensor) else matrix
