"""``regulariser: auto``: several values tried, the best on unlabelled probe inputs kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otfuse.measure.departure import departure, mean_predictions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

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
    targets = mean_predictions(found, weights, probe)
    return searched(lambda value: departure(found[0], fuse(value), probe, targets))


def searched(price: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """The value of least price, with a worse one on either side of it (or at a limit), and all that were tried."""
    tried = {value: price(value) for value in CANDIDATES}
    while True:
        best = min(tried, key=tried.__getitem__)
        step = {min(tried): 0.5, max(tried): 2.0}.get(best, 1.0)
        if best * step in tried or not _SHARPEST <= best * step <= _SOFTEST:
            return best, tried
        tried[best * step] = price(best * step)
