"""Closed forms for one group at a time: the element nearest to a cross product, and the symmetric balance of two sides.

Everywhere ``cross[copies, n, n]`` (float64) is ``sum a b'`` over what units of the anchor (``a``) and of the source (``b``)
are compared by; the element ``M`` that is sought makes ``<M, cross>`` largest, which is the least squared distance between
``a`` and ``M b`` as long as ``M`` keeps lengths.
"""

from __future__ import annotations

import numpy as np
import torch

from otfuse.errors import SolveError


def orthogonal(cross: torch.Tensor) -> torch.Tensor:
    """The orthogonal matrix of every copy (Schönemann 1966): ``U V'`` of the singular value decomposition."""
    u, _, v = torch.linalg.svd(_finite(cross))
    found: torch.Tensor = u @ v
    return found


def orthogonal_fixing_ones(cross: torch.Tensor, count: int | None = None) -> torch.Tensor:
    """The orthogonal matrix that leaves the all-ones vector (of the first ``count`` units) in place, copy by copy.

    Procrustes on what is across it.
    """
    n = cross.shape[-1]
    basis = ones_basis(n, count)
    inner = (basis.T @ cross @ basis)[:, 1:, 1:]
    found = torch.eye(n, dtype=cross.dtype).repeat(len(cross), 1, 1)
    found[:, 1:, 1:] = orthogonal(inner)
    return basis @ found @ basis.T


def ones_basis(n: int, count: int | None = None) -> torch.Tensor:
    """An orthogonal matrix ``[n, n]`` whose first column is the all-ones vector (of the first ``count`` units) of length one.

    A Householder reflection.
    """
    count = n if count is None else count
    ones = torch.zeros(n, dtype=torch.float64)
    ones[:count] = count**-0.5
    ones[0] -= 1
    square = float(ones @ ones)
    return (
        torch.eye(n, dtype=torch.float64) - (2 / square) * torch.outer(ones, ones)
        if square > 0
        else torch.eye(n, dtype=torch.float64)
    )


def turn(cross: torch.Tensor) -> torch.Tensor:
    """The rotation of every pair ``[copies, 2, 2]``: the phase of the complex number that ``cross`` holds."""
    real = _finite(cross)[:, 0, 0] + cross[:, 1, 1]
    imaginary = cross[:, 1, 0] - cross[:, 0, 1]
    size = torch.hypot(real, imaginary)
    cos, sin = (
        torch.where(size > 0, part / size.clamp_min(1e-300), unit) for part, unit in ((real, 1.0), (imaginary, 0.0))
    )
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)


def assignment(gain: torch.Tensor) -> torch.Tensor:
    """``order[copies, n]`` of the largest ``sum_u gain[u, order[u]]`` (Crouse 2016, SciPy)."""
    from scipy.optimize import linear_sum_assignment  # as in solve/assignment.py

    return torch.stack(
        [torch.from_numpy(linear_sum_assignment(own.numpy(), maximize=True)[1]) for own in _finite(gain)]
    )


def signed_assignment(signed: torch.Tensor, plain: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``order[copies, n]`` and ``sign[copies, n]`` of the largest ``sum_u sign[u] signed[u, order[u]] + plain[u, order[u]]``."""
    order = assignment(signed.abs() + plain)
    chosen = signed.gather(2, order[:, :, None])[:, :, 0]
    return order, torch.where(chosen < 0, -1.0, 1.0).to(signed)


def balance(writes: torch.Tensor, reads: torch.Tensor) -> torch.Tensor:
    """The symmetric positive ``M[copies, n, n]`` with ``M W M = M^-1 R M^-1`` for Gram matrices of both sides of a map.

    Afterwards every exact invertible map between two balanced models is orthogonal. ``M^2`` is the geometric mean of
    ``W^-1`` and ``R`` (Bhatia 2007, chapter 4), which both have full rank.
    """
    half, inverse = _power(_finite(writes), 0.5), _power(writes, -0.5)
    return _power(inverse @ _power(half @ _finite(reads) @ half, 0.5) @ inverse, 0.5)


def balance_factors(writes: torch.Tensor, reads: torch.Tensor) -> torch.Tensor:
    """The same for one positive factor per unit, from squared lengths of both sides; 1 where a side is zero."""
    both = (writes > 0) & (reads > 0)
    return torch.where(both, (reads / torch.where(both, writes, 1.0)) ** 0.25, 1.0)


def _power(matrix: torch.Tensor, exponent: float) -> torch.Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    values = values.clamp_min(np.finfo(float).tiny)  # rounding of what is positive
    found: torch.Tensor = (vectors * values[..., None, :] ** exponent) @ vectors.mT
    return found


def _finite(cross: torch.Tensor) -> torch.Tensor:
    if not bool(cross.isfinite().all()):
        raise SolveError(
            "procrustes: values to compare are not finite; check the weights and the probe inputs of both models"
        )
    return cross
