"""Near-symmetries: a larger group than is exact, at the price that the carried source alone pays for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from otfuse.align.elements import carried
from otfuse.core.symmetry import Kind
from otfuse.measure.probe import probe_batches
from otfuse.measure.targets import gaps_of, log_probabilities
from otfuse.program.run import Runner

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
    """Mean divergence (nats; squared error where an output is no distribution) of what a model predicts, carried, from what it predicted.

    On the first probe inputs, or those it was traced on.
    """
    moved = _Moved(weights, spaces, maps)
    run, gaps = Runner(side.program), list[torch.Tensor]()
    few = [] if data is None else [inputs for _, inputs in probe_batches(side.program, data.take(slice(0, _MOST)))]
    for inputs in few or [side.program.inputs]:
        pairs = zip(run(side.weights, inputs), run(moved, inputs), side.program.logits, strict=True)
        for before, after, logits in ((b, a, own) for b, a, own in pairs if b.is_floating_point()):
            rows = [(v if v.ndim > 1 else v[..., None]).flatten(0, -2) for v in (before, after)]
            wanted = log_probabilities(rows[0]).exp() if logits else rows[0]
            gaps.append(gaps_of(rows[1], wanted, distribution=logits)[0].double().mean())
    return float(torch.stack(gaps).mean()) if gaps else 0.0


class _Moved(Mapping[str, torch.Tensor]):
    """Weights carried by maps, each made when it is read and not kept."""

    def __init__(self, weights: Mapping[str, torch.Tensor], spaces: Spaces, maps: State) -> None:
        self._weights, self._spaces, self._maps = weights, spaces, maps

    def __getitem__(self, name: str) -> torch.Tensor:
        own = self._weights[name]
        return carried(own.double(), [(place, self._maps[key]) for key, place in self._spaces.at.get(name, ())]).to(own)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
