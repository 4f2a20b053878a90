"""What several models predict together, as a lesson: the loss of a batch, shared out over processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from otfuse.evaluate.run import positional, returned, to_tensors
from otfuse.measure.targets import counted, gaps_of
from otfuse.program.inputs import forward_keywords
from otfuse.program.outputs import main_outputs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from otfuse.core.dataset import Dataset
    from otfuse.measure.targets import Targets


_ROUNDING = (
    1e-6  # nats: eleven bits of a probability cost a divergence some 1e-8, the sum of single logarithms some 1e-7
)


@dataclass(frozen=True, slots=True, eq=False)
class Exercise:
    """Examples by their numbers in the data, ``rows[example]``, with how many predictions each has."""

    rows: NDArray[np.int64]
    counts: NDArray[np.int64]

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.rows)

    @property
    def count(self) -> int:
        """Number of predictions that count."""
        return int(self.counts.sum())

    def take(self, rows: slice) -> Exercise:
        """The examples at ``rows``."""
        return Exercise(self.rows[rows], self.counts[rows])


class Lesson:
    """Divergence from the targets (squared error where they are no distribution), of a module of the anchor's class."""

    def __init__(self, model: nn.Module, data: Dataset, targets: Targets) -> None:
        self._data, self._targets = data, targets
        self._by_position = positional(model, list(data.inputs))
        self._keywords = {} if self._by_position else forward_keywords(model)
        totals = [max(1, int(output.starts[-1])) for output in targets.outputs]
        self._scales = [totals[0] / total for total in totals]  # every output counts as much as the first

    @property
    def rounding(self) -> float:
        """What two mean losses must differ by to be told apart: probabilities are kept in half precision, and logarithms single."""
        return _ROUNDING if self._targets.distribution else 0.0

    def batch(self, rows: NDArray[np.int64]) -> Exercise:
        """The examples with these numbers."""
        starts = self._targets.outputs[0].starts
        return Exercise(rows, starts[rows + 1] - starts[rows])

    def loss(self, model: nn.Module, like: nn.Module, batch: Exercise, device: torch.device) -> Tensor:
        """The sum over the batch's predictions, in nats (or squares); ``like`` is the module inside ``model``."""
        arrays = self._data.take(batch.rows).inputs
        inputs = to_tensors(arrays, like, device) | self._keywords
        outputs = main_outputs(returned(model, inputs, by_position=self._by_position))
        places = None if self._targets.places is None else self._targets.places[batch.rows]
        total = torch.zeros((), device=device)
        found = zip(counted(outputs, batch.examples, places), self._targets.outputs, self._scales, strict=True)
        for values, target, scale in found:
            wanted = target.take(batch.rows).to(values.device)
            total = total + scale * gaps_of(values, wanted, distribution=target.distribution)[0].sum()
        return total
