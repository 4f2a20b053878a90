"""The loss along the straight line between two models of one class, and its barrier (arXiv 2110.06296, section 2)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from otfuse.core.dataset import Dataset
from otfuse.errors import MatchError, UsageError
from otfuse.evaluate.metrics import Score, evaluate
from otfuse.program.state import copied


@dataclass(frozen=True, slots=True)
class Line:
    """``scores[i]`` is that of the model ``(1 - at[i]) * anchor + at[i] * carried``; ``at`` goes from 0 to 1, both included."""

    at: tuple[float, ...]
    scores: tuple[Score, ...]

    @property
    def gaps(self) -> tuple[float, ...]:
        """The loss above the line that joins the losses of the two ends, point by point, in nats."""
        first, last = self.scores[0].loss, self.scores[-1].loss
        return tuple(s.loss - ((1 - t) * first + t * last) for t, s in zip(self.at, self.scores, strict=True))

    @property
    def barrier(self) -> float:
        """The largest gap, in nats: zero at least, for the ends have none."""
        return max(self.gaps)

    @property
    def highest(self) -> float:
        """The point (0 to 1) with the largest gap."""
        return self.at[self.gaps.index(self.barrier)]

    @property
    def middle(self) -> float | None:
        """The gap of the plain mean of both ends, in nats; None where the number of points is even and none lies there."""
        return dict(zip(self.at, self.gaps, strict=True)).get(0.5)


def require_points(points: int) -> None:
    """UsageError unless there is a point between the ends."""
    if points < 3:
        raise UsageError(f"--points {points}: give 3 or more: both ends, and what lies between them")


def along(
    anchor: nn.Module,
    carried: nn.Module,
    data: Dataset,
    *,
    points: int = 11,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    seed: int = 0,
    mask_token_id: int | None = None,
    special_ids: Collection[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Line:
    """Scores at ``points`` equally far points of the line between two models, both ends included; neither is changed.

    ``carried`` is the other model in the anchor's basis: a fusion with the weights (0, 1). Further arguments as for
    :func:`otfuse.evaluate.metrics.evaluate`; ``progress(done, points)``. Raises MatchError if the two have other tensors,
    UsageError if there is no point between the ends.
    """
    require_points(points)
    at, scores = tuple(i / (points - 1) for i in range(points)), list[Score]()
    between, ends = copied(anchor), (_floating(anchor), _floating(carried))
    _require_same(*ends)
    for t in at:
        _mix(_floating(between), *ends, t)
        scores.append(
            evaluate(
                between, data, batch_size=batch_size, device=device, seed=seed,
                mask_token_id=mask_token_id, special_ids=special_ids,
            )
        )  # fmt: skip
        if progress is not None:
            progress(len(scores), points)
    return Line(at, tuple(scores))


def _floating(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {n: t for n, t in state.items() if isinstance(t, Tensor) and t.is_floating_point()}


def _require_same(anchor: dict[str, Tensor], carried: dict[str, Tensor]) -> None:
    for name in (*anchor, *carried):
        if name not in anchor or name not in carried or anchor[name].shape != carried[name].shape:
            raise MatchError(
                f"no line joins these two models: {name!r} is not in both, or of another shape; carry the source into the "
                "anchor's basis first (a fusion with the weights 0 and 1)"
            )


def _mix(into: dict[str, Tensor], anchor: dict[str, Tensor], carried: dict[str, Tensor], t: float) -> None:
    """``(1 - t) * anchor + t * carried``, summed in float64 as a fusion does."""
    for name, own in into.items():
        total = anchor[name].double().mul(1 - t).add_(carried[name].double().to(anchor[name].device), alpha=t)
        own.copy_(total)
