"""How far a model's predictions are from what several predict together, on inputs without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from otfuse.measure.probe import probe_batches
from otfuse.program.run import Runner

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otfuse.core.dataset import Dataset
    from otfuse.measure.probe import Side


def mean_predictions(found: Sequence[Side], weights: Sequence[float], probe: Dataset) -> list[list[torch.Tensor]]:
    """Per batch and output: the models' weighted mean distribution (or value, where the last dimension has one entry)."""
    runs = [Runner(side.program) for side in found]
    targets = []
    for _, batch in probe_batches(found[0].program, probe):
        outputs = [run(side.weights, batch) for run, side in zip(runs, found, strict=True)]
        targets.append(
            [
                torch.stack([w * _distribution(o).exp() for w, o in zip(weights, parts, strict=True)]).sum(0)
                if parts[0].shape[-1] > 1
                else torch.stack([w * o for w, o in zip(weights, parts, strict=True)]).sum(0)
                for parts in zip(*outputs, strict=True)
            ]
        )
    return targets


def departure(
    anchor: Side, fused: Mapping[str, torch.Tensor], probe: Dataset, targets: Sequence[Sequence[torch.Tensor]]
) -> float:
    """Mean Kullback-Leibler divergence from ``targets`` to what the anchor predicts with weights ``fused``.

    Over the last dimension of every output, in nats (squared error where it has one entry). No label is read.
    """
    run, total, count = Runner(anchor.program), 0.0, 0
    for (part, batch), wanted in zip(probe_batches(anchor.program, probe), targets, strict=True):
        for output, target in zip(run(fused, batch), wanted, strict=True):
            if output.shape[-1] > 1:
                gap = (torch.xlogy(target, target) - target * _distribution(output)).sum(-1)
            else:
                gap = (output - target).square()
            total += float(gap[: len(gap) // part.size * part.real].double().mean()) * part.real
        count += part.real
    return total / count


def _distribution(output: torch.Tensor) -> torch.Tensor:
    return output.float().log_softmax(-1)
