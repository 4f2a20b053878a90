"""``regulariser: auto``: several values tried, the best on unlabelled probe inputs kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otfuse.measure.targets import apart, together

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
    The departure is the mean divergence from the parents' mean prediction (:mod:`otfuse.measure.targets`). No label is read.
    """
    probe = data.take(slice(0, _EXAMPLES))
    with together(found, weights, probe, half=False) as targets:
        return searched(lambda value: float(apart(found[0], fuse(value), probe, targets).divergence.mean()))


def searched(
    departure: Callable[[float], float],
    candidates: Sequence[float] = CANDIDATES,
    factor: float = 2.0,
    limits: tuple[float, float] = (_SHARPEST, _SOFTEST),
) -> tuple[float, dict[float, float]]:
    """The value of least departure, with a worse one on either side of it (or at a limit), and all that were tried.

    ``candidates`` are tried first, then further ones, each ``factor`` beyond the last.
    """
    tried = {value: departure(value) for value in candidates}
    while True:
        best = min(tried, key=tried.__getitem__)
        step = {min(tried): 1 / factor, max(tried): factor}.get(best, 1.0)
        if best * step in tried or not limits[0] <= best * step <= limits[1]:
            return best, tried
        tried[best * step] = departure(best * step)
