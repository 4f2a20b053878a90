"""Parents and stages compared on held-back inputs, without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otfuse.core.report import Compared
from otfuse.measure.targets import apart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from otfuse.core.dataset import Dataset
    from otfuse.measure.probe import Side
    from otfuse.measure.targets import Apart, Targets

_CLEAR = 2.0  # standard errors of the mean difference, example by example, from which a parent is called better
_WRONG = 1.0  # and from which a stage went wrong: what training fits beyond that was no gain (docs/experiments.md)


class Guard:
    """Figures of parents and stages on inputs that no stage learned from.

    The figure is the cross-entropy against the most likely class of the parents' mean prediction (nats), or the squared
    error against their mean where an output is no distribution (no judge without labels was found that beats a fixed
    order of stages: this one undoes and tells, and chooses nothing).
    """

    def __init__(
        self, parents: Sequence[Side], names: Sequence[str], data: Dataset, targets: Targets, held: NDArray[np.int64]
    ) -> None:
        self._anchor, self._names, self._held = parents[0], names, held
        self._data, self._targets = data, targets
        self.by = (
            "cross-entropy in nats against the most likely class of the parents' mean prediction"
            if targets.distribution
            else "squared error against the parents' mean output"
        )
        self._parents = [self._each(side, side.weights) for side in parents]
        self._result = self._parents[0]
        self.rows = [
            Compared(n, "parent", float(e.against.mean()), None, None)
            for n, e in zip(names, self._parents, strict=True)
        ]

    def stage(self, name: str, weights: Mapping[str, torch.Tensor], seconds: float, *, first: bool, undo: bool) -> bool:
        """Whether a stage's result is kept: one that may be undone (``undo``) is, unless it went wrong."""
        each = self._each(self._anchor, weights)
        kept = first or not undo or not _went_wrong(each, self._result)
        self.rows.append(Compared(name, "stage", float(each.against.mean()), seconds, kept))
        self._result = each if kept else self._result
        return kept

    def failed(self, name: str, seconds: float) -> None:
        """A stage that left the finite numbers."""
        self.rows.append(Compared(name, "stage", float("nan"), seconds, kept=False))

    def notes(self) -> list[str]:
        """A sentence for each stage that was undone, and one if a parent is clearly better than the result."""
        found, before = [], None
        for row in (row for row in self.rows if row.kind == "stage"):
            if not row.kept and before is not None:
                found.append(
                    f"{row.name} was undone: on held-back inputs it came to {row.figure:.4f}, and {before.name} before it to "
                    f"{before.figure:.4f} ({self.by})"
                )
            before = row if row.kept else before
        return [*found, *self._better()]

    def _better(self) -> list[str]:
        """The best parent, if it is better by more than chance."""
        best = min(range(len(self._parents)), key=lambda i: float(self._parents[i].against.mean()))
        if not _clearly_worse(self._result, self._parents[best]):
            return []
        ours, theirs = float(self._result.against.mean()), float(self._parents[best].against.mean())
        said = f"{self._names[best]} alone is clearly better than the result on {len(self._result.against)} held-back inputs"
        return [
            f"{said}: {theirs:.4f} against {ours:.4f} ({self.by}); consider keeping it, or give more inputs or time"
        ]

    def _each(self, side: Side, weights: Mapping[str, torch.Tensor]) -> Apart:
        return apart(side, weights, self._data, self._targets, self._held)


def _clearly_worse(one: Apart, other: Apart, errors: float = _CLEAR) -> bool:
    """Whether the figure of ``one`` is larger by more than so many standard errors of the differences, or not finite."""
    gaps = one.against - other.against
    return not float(gaps.mean()) <= errors * (float(gaps.std()) / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0)


def _went_wrong(one: Apart, before: Apart) -> bool:
    """Whether a stage is worse than the one before: clearly, or by a little and farther from the parents' prediction as well.

    A stage that comes nearer to what the parents predict may lose a little of the figure by chance, or because the one
    before was too sure of itself.
    """
    worse = not float(one.against.mean()) <= float(before.against.mean())
    return worse and (
        _clearly_worse(one, before, _WRONG) or not float(one.divergence.mean()) <= float(before.divergence.mean())
    )
