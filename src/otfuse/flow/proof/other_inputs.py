"""Other inputs of the same shapes: what one example hides (a mask, a threshold, a number), another lets through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from otfuse.flow.proof.act import chance

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from otfuse.program.inputs import Inputs


def other_inputs(inputs: Inputs, seed: int, *, new_numbers: bool) -> Iterator[tuple[Inputs, list[Inputs]]]:
    """Inputs with every tensor drawn anew, each with those where one tensor alone is: for when all at once does not work.

    First as wide as may be: real numbers of all sizes from a tenth to ten, masks at random, whole numbers from zero to the
    largest seen (zeros as zeros and ones if there may be ``new_numbers``: on an accelerator a number beyond a table ends
    the process). Then, where there are real numbers, as narrow as may be: tensors of zeros and ones stay such, the values
    of others change places.
    """
    leaves, form = tree_flatten(inputs)
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor) and leaf.numel()]

    def replaced(drawn: dict[int, torch.Tensor]) -> Any:
        return tree_unflatten([drawn.get(i, leaf) for i, leaf in enumerate(leaves)], form)

    for narrow in (False, True) if any(leaves[i].is_floating_point() for i in tensors) else (False,):
        source = chance(seed, "inputs", "narrow" if narrow else "wide")
        drawn = {i: _other(leaves[i], source, narrow=narrow, new_numbers=new_numbers) for i in tensors}
        yield replaced(drawn), [replaced({i: drawn[i]}) for i in tensors]


def _other(given: torch.Tensor, source: np.random.Generator, *, narrow: bool, new_numbers: bool) -> torch.Tensor:
    values, shape = given.detach().cpu().reshape(-1), tuple(given.shape)
    marks = bool(((values == 0) | (values == 1)).all())
    drawn: Any
    if given.dtype.itemsize == 2 and given.is_floating_point():  # NumPy lacks some of these types
        return _other(given.float(), source, narrow=narrow, new_numbers=new_numbers).to(given.dtype)
    if marks and (narrow or given.dtype is torch.bool):
        drawn = _in_every_row(source.integers(0, 2, shape), 0, 1, source)
    elif narrow:
        drawn = values[torch.from_numpy(source.permutation(len(values)))].reshape(shape)
    elif given.is_floating_point() or given.is_complex():
        drawn = source.standard_normal(shape) * 10 ** source.uniform(-1, 1, shape)
    elif int(values.min()) < 0:  # marks such as -100 among numbers: only those seen are known to be valid
        drawn = source.choice(values.unique().numpy(), shape)
    else:
        top = max(int(values.max()), int(new_numbers))
        drawn = _in_every_row(source.integers(0, top + 1, shape), 0, top, source)
    return torch.as_tensor(np.asarray(drawn)).to(given.device, given.dtype)


def _in_every_row(drawn: NDArray[Any], low: int, high: int, source: np.random.Generator) -> NDArray[Any]:
    """Both numbers stand in every row (of two or more): a mask that leaves nothing of a row says nothing about it."""
    rows = np.asarray(drawn).reshape(-1, drawn.shape[-1] if drawn.ndim else 1)
    if rows.shape[1] > 1:
        for row in rows:
            row[source.permutation(rows.shape[1])[:2]] = low, high
    return rows.reshape(drawn.shape)
