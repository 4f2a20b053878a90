"""Arrays that go into a model, and the labels that go with them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from otfuse.core.counted import places

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]
    Counts = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """``inputs[name][example, ...]`` named as the model's own inputs; ``labels[example, ...]`` or None.

    ``counts[name][example]``: how many rows of that array each example has, where it is not one (several images, patches
    that a grid counts); they lie one example after another.
    """

    inputs: Arrays
    labels: NDArray[np.generic] | None = None
    counts: Counts = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of examples."""
        name = next(iter(self.inputs))
        return len(self.counts.get(name, self.inputs[name]))

    def digest(self) -> str:
        """BLAKE2b (16 bytes, hex) over every array's name, type, shape and values, by name."""
        total = hashlib.blake2b(digest_size=16)
        labels = {} if self.labels is None else {"labels": self.labels}
        counts = {f"counts {name}": count for name, count in self.counts.items()}
        for name, array in sorted({**self.inputs, **labels, **counts}.items()):
            total.update(f"{name} {array.dtype} {array.shape};".encode())
            total.update(array.ravel().data)
        return total.hexdigest()

    def take(self, rows: NDArray[np.int64] | slice) -> Dataset:
        """The examples at ``rows``, in that order."""
        labels = None if self.labels is None else self.labels[rows]
        return Dataset(taken(self.inputs, self.counts, rows), labels, {n: c[rows] for n, c in self.counts.items()})

    def batches(self, batch_size: int) -> Iterator[Dataset]:
        """Consecutive batches; the last may be smaller."""
        for start in range(0, self.size, batch_size):
            yield self.take(slice(start, start + batch_size))


def taken(inputs: Arrays, counts: Counts, rows: NDArray[np.int64] | slice) -> dict[str, NDArray[np.generic]]:
    """Arrays of the examples at ``rows``."""
    return {name: array[places(counts[name], rows) if name in counts else rows] for name, array in inputs.items()}
