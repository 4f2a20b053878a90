"""One fusion of loaded modules, stage by stage: program -> flow graph -> statistics -> maps -> fused tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otfuse.align.pair import Pair
from otfuse.align.scheme import align, measure, needs_data
from otfuse.errors import DataError, UsageError
from otfuse.fusion.apply import fused
from otfuse.fusion.choose import best_regulariser
from otfuse.fusion.differences import described, differences
from otfuse.fusion.sides import check, sides, workable
from otfuse.measure.probe import first_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import nn

    from otfuse.core.alignment import Alignment
    from otfuse.core.dataset import Dataset
    from otfuse.core.recipe import Recipe
    from otfuse.measure.clock import Clock
    from otfuse.program.inputs import Inputs
    from otfuse.program.state import Slot

    Progress = Callable[[str, int, int], None]


class Job:
    """One fusion of loaded modules, stage by stage."""

    def __init__(  # everything a run needs, once
        self,
        models: Sequence[nn.Module],
        names: Sequence[str],
        recipe: Recipe,
        data: Dataset | None,
        example_inputs: Inputs | None,
        batch_size: int,
        clock: Clock,
        progress: Progress | None,
    ) -> None:
        if len(models) < 2:  # an anchor and a source
            raise UsageError("fuse needs at least two models: an anchor and one or more sources")
        self.models, self.names, self.recipe, self.clock = [workable(m) for m in models], names, recipe, clock
        self.data, self._examples, self._batch = data, example_inputs, batch_size
        self._progress = progress or (lambda _stage, _done, _total: None)
        self.weights = recipe.weights_for(len(models))
        self._chosen: str | None = None
        self._differences: list[str] = []

    def pairs(self) -> list[Pair]:
        """Every source beside the anchor: traced and matched."""
        with self.clock.stage("trace"):
            self._progress("trace", 0, 1)
            inputs = self._examples
            if self.data is not None and (inputs is None or needs_data(self.recipe)):
                inputs = first_batch(self.models[0], self.data, self._batch)
            self._sides = sides(self.models, self.names, inputs)
            told = [described(model, name) for model, name in zip(self.models, self.names, strict=True)]
            self._differences = differences(told, classes=not self.recipe.keeps_classifier)
            self._progress("trace", 1, 1)
        return [Pair(self._sides[0], side) for side in self._sides[1:]]

    def run(self, *, verify: bool) -> tuple[dict[str, torch.Tensor], list[Alignment], dict[str, float] | None]:
        """Fused tensors by name, the alignment of every source, and the figures of the gate."""
        pairs, gate = self.pairs(), None
        if verify and self.recipe.scheme != "average":
            with self.clock.stage("verify"):
                found = check(self.models, self._sides, self.recipe.seed)
                gate = {"error": found.error, "control": found.control}
        with self.clock.stage("measure"):
            data = self.data
            measured = [measure(p, self.recipe, data, lambda d, t: self._progress("measure", d, t)) for p in pairs]
        with self.clock.stage("align"):
            self._progress("align", 0, 1)

            def found_with(value: float) -> list[Alignment]:
                return [align(p, self.recipe, m, value) for p, m in zip(pairs, measured, strict=True)]

            alignments = found_with(self._regulariser(found_with))
            self._progress("align", 1, 1)
        with self.clock.stage("average"):
            return self._mixed(alignments), alignments, gate

    @property
    def caches(self) -> tuple[Slot, ...]:
        """Attributes in which the anchor keeps what it computed from its own weights; a copy of it starts without."""
        return self._sides[0].program.caches

    def notes(self, alignments: Sequence[Alignment]) -> tuple[str, ...]:
        """What the report says beside figures."""
        found = [note for a in alignments for note in a.notes] + self._differences
        loose = [s.name for a in alignments for s in a.solved if not s.converged]
        found += [f"{name}: the solver did not converge" for name in loose]
        return tuple([self._chosen, *found] if self._chosen else found)

    def _mixed(self, alignments: Sequence[Alignment]) -> dict[str, torch.Tensor]:
        sources = [{name: s.weights[first] for name, first in s.graph.ties.items()} for s in self._sides[1:]]
        return fused(self._sides[0].weights, sources, alignments, self.weights)

    def _regulariser(self, found_with: Callable[[float], list[Alignment]]) -> float:
        wanted = self.recipe.otfusion.regulariser
        if self.recipe.scheme != "otfusion" or self.recipe.otfusion.solver != "sinkhorn":
            return 1.0
        if wanted != "auto":
            return float(wanted)
        if self.data is None:
            raise DataError(
                "otfusion.regulariser auto: chooses by unlabelled inputs and none were given; give data, or a number"
            )
        best, tried = best_regulariser(self._sides, self.weights, self.data, lambda v: self._mixed(found_with(v)))
        used = self.recipe.otfusion.model_copy(update={"regulariser": best})
        self.recipe = self.recipe.model_copy(update={"otfusion": used})  # the report and the card tell what was used
        table = ", ".join(f"{value:g}: {gap:.3f}" for value, gap in tried.items())
        self._chosen = f"regulariser {best:g} chosen by divergence from the parents' mean prediction ({table})"
        return best
