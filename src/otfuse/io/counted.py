"""Data in which rows are not examples (core/counted.py): told by the model's config and the arrays, and checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from otfuse.core.counted import MEDIA, grids, rows_of
from otfuse.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.generic]]
    Counts = dict[str, NDArray[np.int64]]

_PLACES = ("image_token_id", "image_token_index", "audio_token_id", "audio_token_index", "video_token_id")


def joins(config: Mapping[str, Any]) -> bool:
    """Whether the model reads images or sounds where tokens stand for them."""
    return any(config.get(name) is not None for name in _PLACES)


def beyond(config: Mapping[str, Any]) -> int:
    """One more than the largest number that stands for an image or sound: it may lie outside the vocabulary."""
    return 1 + max((config[name] for name in _PLACES if isinstance(config.get(name), int)), default=-1)


def laid_out(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Grids and patches given example by example (``[example, image, 3]``, ``[example, patch, feature]``), end to end."""
    found = dict(arrays)
    for name in {name for pair in grids(arrays).items() for name in pair} & arrays.keys():
        value = arrays[name]
        if getattr(value, "ndim", 2) == 3:
            found[name] = value.reshape(-1, value.shape[-1])
        elif getattr(value, "dtype", None) == np.dtype(object):  # as many rows as each example has
            found[name] = np.concatenate([np.stack(list(rows)) for rows in value])
    return found


def counts(arrays: Arrays, config: Mapping[str, Any], where: str) -> Counts:
    """Rows of each example in the arrays that have not one; DataError if they cannot be told."""
    if not joins(config):
        return {}
    examples = len(next((arrays[n] for n in ("input_ids", "labels") if n in arrays), next(iter(arrays.values()))))
    if not examples:
        return {}
    counting = grids(arrays)
    for name, array in arrays.items():
        if name.startswith(MEDIA) and name not in counting.values() and len(array) % examples:
            raise DataError(
                f"data {where}: {name!r} has {len(array)} rows for {examples} examples; give one image to every example, or as "
                "many to each"
            )
    for grid, media in counting.items():
        if media in arrays:
            _check_grid(grid, arrays[grid], media, arrays[media], where)
    return rows_of(arrays, examples)


def _check_grid(grid: str, sizes: NDArray[Any], media: str, patches: NDArray[np.generic], where: str) -> None:
    if sizes.ndim != 2 or sizes.shape[1] != 3:
        raise DataError(f"data {where}: {grid!r} has shape {list(sizes.shape)}, wanted [images, 3]; reshape it")
    if (count := sizes.prod(1).sum()) != len(patches):
        raise DataError(
            f"data {where}: {media!r} has {len(patches)} patches, {grid!r} counts {count}; give the grids of these images"
        )
