"""``regulariser: auto``: several values tried, the best on unlabelled probe inputs kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from otfuse.measure.probe import probe_batches
from otfuse.program.run import Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from otfuse.core.dataset import Dataset
    from otfuse.measure.probe import Side

CANDIDATES = (1.0, 0.5, 0.2, 0.08, 0.04, 0.02, 0.01, 0.005, 0.002)
_SHARPEST, _SOFTEST = 1e-4, 10.0  # beyond the candidates the search goes on this far, where Sinkhorn is right
_EXAMPLES = 512


def best_regulariser(
    found: Sequence[Side],
    weights: Sequence[float],
    data: Dataset,
    fuse: Callable[[float], Mapping[str, torch.Tensor]],
) -> tuple[float, dict[float, float]]:
    """The value whose fused model departs least from what the parents predict together, and all departures.

    All candidates are tried. If the sharpest or the softest is the best, it is halved or doubled as long as that helps.
    The departure is the mean Kullback-Leibler divergence from the parents' mean distribution to the fused model's, over
    the last dimension of every output (squared error where it has one entry). No label is read.
    """
    probe = data.take(slice(0, _EXAMPLES))
    targets = _targets(found, weights, probe)
    return searched(lambda value: _departure(found[0], fuse(value), probe, targets))


def searched(departure: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """The value of least departure, with a worse one on either side of it (or at a limit), and all that were tried."""
    tried = {value: departure(value) for value in CANDIDATES}
    while True:
        best = min(tried, key=tried.__getitem__)
        step = {min(tried): 0.5, max(tried): 2.0}.get(best, 1.0)
        if best * step in tried or not _SHARPEST <= best * step <= _SOFTEST:
            return best, tried
        tried[best * step] = departure(best * step)


def _targets(found: Sequence[Side], weights: Sequence[float], probe: Dataset) -> list[list[torch.Tensor]]:
    """Per batch and output: the parents' weighted mean distribution (or value)."""
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


def _departure(
    anchor: Side, fused: Mapping[str, torch.Tensor], probe: Dataset, targets: Sequence[Sequence[torch.Tensor]]
) -> float:
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
