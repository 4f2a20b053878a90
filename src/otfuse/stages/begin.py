"""The fusion that a recipe asks for: straight into the result, or by stages."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from otfuse.fusion.job import Job
from otfuse.stages.order import DIRECT, without_data

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from otfuse.core.dataset import Dataset
    from otfuse.core.recipe import Recipe
    from otfuse.fusion.sides import Parent
    from otfuse.measure.clock import Clock, Progress
    from otfuse.program.inputs import Inputs
    from otfuse.stages.staged import Staged
    from otfuse.train.progress import Progress as Kept


def begun(
    parents: Sequence[Parent],
    recipe: Recipe,
    data: Dataset | None,
    example_inputs: Inputs | None,
    batch_size: int,
    clock: Clock,
    progress: Progress | None,
    *,
    tokens: Callable[[], dict[str, Any]],
    device: str = "cpu",
    out: Path | None = None,
) -> Job | Staged:
    """One fusion, to be run or planned."""
    alone = recipe.scheme == "auto" and data is None
    unread = recipe.scheme not in ("otfusion", "average") and "otfusion" in recipe.model_fields_set
    told = f"otfusion: recipe {recipe.scheme} does not read this section; give --recipe otfusion-wts or another of that scheme"
    recipe = without_data(recipe) if alone else recipe
    given = (parents, recipe, data, example_inputs, batch_size, clock, progress)
    if recipe.scheme not in DIRECT:
        from otfuse.stages.staged import Staged  # training is slow to import, and only stages train

        staged = Staged(*given, tokens=tokens(), device=device, out=out)
        if unread:
            staged.note(told)
        return staged
    job = Job(*given, yields=alone)
    if unread:
        job.note(told)
    if alone:
        job.note(
            "auto had no inputs to learn from and compared weights alone; some would help: 100 or more unlabelled images, or "
            "windows of text (--data)"
        )
    return job


def is_first() -> bool:
    """Whether this process writes: of several that ``accelerate launch`` started, only the first does."""
    return os.environ.get("RANK", "0") == "0"


def kept_beside(out: Path) -> Kept:
    """What a run whose result goes to ``out`` keeps to go on from."""
    from otfuse.train.progress import Progress as Kept

    return Kept.beside(out)
