"""The ridge solution against the least-squares problem that it states, written out row by row."""

import numpy as np
import pytest
import torch

from otfuse.calibrate.moments import Sums
from otfuse.solve.ridge import ridge


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def products(x, t, batch):
    sums = Sums(len(x), x.shape[2], [t.shape[2]], torch.device("cpu"))
    for start in range(0, x.shape[1], batch):
        sums.add(x[:, start : start + batch], [t[:, start : start + batch]])
    return sums.products(0)


@pytest.mark.parametrize("rows", [3, 50])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("blend", [1.0, 0.3])
def test_it_solves_the_stated_problem(rows, biased, blend):
    x, t = drawn(2, rows, 5) + 3, drawn(2, rows, 4, seed=1)
    there, away = drawn(2, 4, 5, seed=2), drawn(2, 4, 5, seed=3)
    offset, shift = (drawn(2, 4, seed=s) if biased else None for s in (4, 5))
    weight, bias = ridge(products(x, t, 7), there, offset, strength=0.1, blend=blend, elsewhere=(away, shift))
    for g in range(2):
        other = x[g] @ away[g].T + (shift[g] if biased else 0)
        target = blend * t[g] + (1 - blend) * other
        mean, middle = (x[g].mean(0), target.mean(0)) if biased else (0, 0)
        about = x[g] - mean
        size = torch.linalg.matrix_norm(about.T @ about)
        rows_ = torch.cat([about / size.sqrt(), 0.1**0.5 * torch.eye(5, dtype=x.dtype)])
        wanted = torch.cat([(target - middle) / size.sqrt(), 0.1**0.5 * there[g].T])
        exact = torch.linalg.lstsq(rows_, wanted).solution.T
        assert torch.allclose(weight[g], exact, atol=1e-9)
        if biased:
            assert torch.allclose(bias[g], middle - exact @ mean, atol=1e-9)


def test_a_group_without_rows_keeps_what_it_has():
    sums = Sums(2, 3, [2], torch.device("cpu"))
    sums.add(drawn(1, 9, 3), [drawn(1, 9, 2, seed=1)], slice(1, 2))
    there, offset = drawn(2, 2, 3, seed=2), drawn(2, 2, seed=3)
    weight, bias = ridge(sums.products(0), there, offset, strength=0.01)
    assert torch.equal(weight[0], there[0])
    assert torch.equal(bias[0], offset[0])
    assert not torch.equal(weight[1], there[1])


def test_large_means_do_not_cancel_in_single_precision():
    x, exact = drawn(1, 200, 4) + 1e3, drawn(1, 3, 4, seed=1)
    t = x @ exact.mT
    weight, _ = ridge(products(x.float(), t.float(), 50), 0 * exact, drawn(1, 3), strength=1e-9)
    assert torch.allclose(weight, exact, atol=1e-3)
