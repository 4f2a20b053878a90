"""Arrays whose rows are not examples: patches of images that a grid counts, and several images to one text.

Models that read images where tokens stand for them take `pixel_values[patches, features]` of all images beside
`image_grid_thw[images, 3]`, or `pixel_values[images, channels, height, width]` with as many images in every text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_GRID = "_grid_thw"
MEDIA: Final = ("pixel_", "image_", "video_", "input_features", "feature_", "aspect_ratio_")


def grids(names: Iterable[str]) -> dict[str, str]:
    """Every grid with the array whose rows it counts."""
    kinds = [name.removesuffix(_GRID) for name in names if name.endswith(_GRID)]
    return {kind + _GRID: "pixel_values" if kind == "image" else f"pixel_values_{kind}s" for kind in kinds}


def rows_of(inputs: Mapping[str, Any], examples: int) -> dict[str, NDArray[np.int64]]:
    """How many rows each example has in the arrays (or tensors) that have not one each, as far as that can be told."""
    counting, found = grids(inputs), dict[str, NDArray[np.int64]]()
    for name, array in inputs.items():
        length = len(array) if name.startswith(MEDIA) and name not in counting.values() and array.ndim else examples
        if length and length != examples and length % examples == 0:
            found[name] = np.full(examples, length // examples)
    for grid, media in counting.items():
        if media in inputs and len(inputs[grid]) % examples == 0:
            found[media] = np.asarray(inputs[grid]).prod(1).reshape(examples, -1).sum(1)
    return found


def places(counts: NDArray[np.int64], examples: NDArray[np.int64] | slice) -> NDArray[np.int64]:
    """The rows of these examples, in their order."""
    ends = np.cumsum(counts)
    found = [np.arange(ends[i] - counts[i], ends[i]) for i in np.arange(len(counts))[examples]]
    return np.concatenate(found) if found else np.empty(0, np.int64)
