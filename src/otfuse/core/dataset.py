"""Arrays that go into a model, and the labels that go with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """``inputs[name][example, ...]`` named as the model's own inputs; ``labels[example, ...]`` or None."""

    inputs: Mapping[str, NDArray[np.generic]]
    labels: NDArray[np.generic] | None = None

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(next(iter(self.inputs.values())))

    def take(self, rows: NDArray[np.int64] | slice) -> Dataset:
        """The examples at ``rows``, in that order."""
        labels = None if self.labels is None else self.labels[rows]
        return Dataset({name: array[rows] for name, array in self.inputs.items()}, labels)

    def batches(self, batch_size: int) -> Iterator[Dataset]:
        """Consecutive batches; the last may be smaller."""
        for start in range(0, self.size, batch_size):
            yield self.take(slice(start, start + batch_size))
