"""The demo's images: handwritten digits of scikit-learn, split always in the same way, and what a parent sees of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from otfuse.core.dataset import Dataset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

IMAGES, HELD_OUT = 1797, 500
RARE = 20  # of the digits that are not its own, a parent that knows half of them sees one image in so many
_BOX = slice(2, 18)  # of an image of 16 x 16 padded by two on each side


@dataclass(frozen=True, slots=True, eq=False)
class Digits:
    """Images of 16 x 16 from scikit-learn's 1,797 of 8 x 8; ``probe`` is a part of ``train`` (or all) without labels."""

    train: Dataset
    shifted: Dataset
    probe: Dataset
    held_out: Dataset


def digits(probe: int) -> Digits:
    """The images; ``shifted`` holds each training image at nine places, half a pixel apart."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    small = torch.from_numpy((pixels.reshape(-1, 1, 8, 8) / 8 - 1).astype(np.float32))
    large = torch.nn.functional.interpolate(small, size=(16, 16), mode="bilinear", align_corners=False)
    order = np.random.default_rng(0).permutation(len(labels))
    kept, held_out = order[:-HELD_OUT], order[-HELD_OUT:]
    padded = torch.nn.functional.pad(large[kept], (2, 2, 2, 2), value=-1.0)
    places = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    shifted = [padded[:, :, _moved(dy), _moved(dx)] for dy, dx in places]
    train = _dataset(large[kept], labels[kept])
    return Digits(
        train=train,
        shifted=_dataset(torch.cat(shifted), np.tile(labels[kept], len(places))),
        probe=Dataset(train.take(slice(0, probe)).inputs),
        held_out=_dataset(large[held_out], labels[held_out]),
    )


def halves(seeds: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ten digits in two halves, drawn by the seeds of the two parents."""
    drawn = np.random.default_rng(list(seeds)).permutation(10).tolist()
    return tuple(sorted(drawn[:5])), tuple(sorted(drawn[5:]))


def seen(data: Dataset, own: Sequence[int], seed: int) -> Dataset:
    """All images of the digits ``own``, and one in twenty of the others, drawn by ``seed``."""
    assert data.labels is not None
    rare = np.random.default_rng(seed).permutation(data.size) % RARE == 0
    return data.take(np.flatnonzero(np.isin(data.labels, own) | rare))


def _dataset(images: torch.Tensor, labels: NDArray[np.int64]) -> Dataset:
    return Dataset({"pixel_values": images.numpy()}, labels)


def _moved(by: int) -> slice:
    return slice(_BOX.start + by, _BOX.stop + by)
