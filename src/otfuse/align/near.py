"""Near-symmetries: a larger group than is exact, at the price that the carried source alone pays for it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from otfuse.align.elements import carried
from otfuse.core.symmetry import Kind
from otfuse.measure.probe import probe_batches
from otfuse.program.run import Runner

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otfuse.align.compared import State
    from otfuse.align.spaces import Spaces
    from otfuse.core.dataset import Dataset
    from otfuse.core.symmetry import Symmetry
    from otfuse.measure.probe import Side

_MOST = 64  # examples that a price is measured on


def rotated(found: Sequence[Symmetry]) -> tuple[tuple[Symmetry, ...], tuple[str, ...]]:
    """The symmetries, with rotations (that fix the all-ones) of every stream that tolerates less, and the names of these."""
    narrow = [s for s in found if s.space.kind == "stream" and s.copies == 1 and s.n > 2 and not s.kind.mixes]
    wide = tuple(replace(s, kind=Kind.ORTHOGONAL_ONES) if s in narrow else s for s in found)
    return wide, tuple(s.space.name for s in narrow)


def price(side: Side, weights: Mapping[str, torch.Tensor], spaces: Spaces, maps: State, data: Dataset | None) -> float:
    """Mean divergence (nats; squared error where an output has one number) of what a model predicts, carried, from what it predicted.

    On the first probe inputs, or those it was traced on.
    """
    moved = {
        name: carried(weights[name].double(), [(place, maps[key]) for key, place in spaces.at.get(name, ())]).to(tensor)
        for name, tensor in ((name, weights[name]) for name, first in side.graph.ties.items() if name == first)
    }
    run, total, count = Runner(side.program), 0.0, 0
    few = [] if data is None else [inputs for _, inputs in probe_batches(side.program, data.take(slice(0, _MOST)))]
    for inputs in few or [side.program.inputs]:
        for before, after in zip(run(side.weights, inputs), run(moved, inputs), strict=True):
            if before.is_floating_point():
                total, count = total + _divergence(before.double(), after.double()), count + 1
    return total / max(count, 1)


def _divergence(before: torch.Tensor, after: torch.Tensor) -> float:
    if before.shape[-1] == 1:
        return float((before - after).square().mean())
    old, new = before.log_softmax(-1), after.log_softmax(-1)
    return float((old.exp() * (old - new)).sum(-1).mean())
