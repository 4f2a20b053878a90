"""The fusion that a recipe asks for: straight into the result, or by stages."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from otfuse.fusion.job import Job
from otfuse.stages.order import DIRECT, without_data

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from otfuse.fusion.job import Request
    from otfuse.stages.staged import Staged
    from otfuse.train.progress import Progress as Kept


def begun(
    asked: Request, *, tokens: Callable[[], dict[str, Any]], device: str = "cpu", out: Path | None = None
) -> Job | Staged:
    """One fusion, to be run or planned."""
    recipe = asked.recipe
    alone = recipe.scheme == "auto" and asked.data is None
    unread = recipe.scheme not in ("otfusion", "average") and "otfusion" in recipe.model_fields_set
    told = f"otfusion: recipe {recipe.scheme} does not read this section; give --recipe otfusion-wts or another of that scheme"
    asked = replace(asked, recipe=without_data(recipe)) if alone else asked
    if asked.recipe.scheme not in DIRECT:
        from otfuse.stages.staged import Staged  # training is slow to import, and only stages train

        staged = Staged(asked, tokens=tokens(), device=device, out=out)
        if unread:
            staged.note(told)
        return staged
    job = Job(asked, yields=alone)
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
