"""What each stage does: weights go in, weights come out, by first stored name (None: nothing was done). A further stage is one function and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otfuse.train.distil import Course, distil
from otfuse.train.lesson import Lesson

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from otfuse.stages.staged import Staged

    Weights = dict[str, Tensor]


def distilled(run: Staged, weights: Weights) -> Weights | None:
    """All weights trained towards what the parents predict together; the best on held-back inputs is given back."""
    anchor, recipe, planned = run.parents[0], run.recipe, course(run)
    if planned.steps == 0 or (planned.steps is None and not recipe.auto.seconds):
        run.note("nothing was distilled: the recipe leaves no steps or time for it (auto.steps, auto.budget)")
        return None
    with run.clock.stage("distil"):
        made = distil(
            anchor.module,
            weights,
            Lesson(anchor.module, run.inputs, run.targets),
            run.learned,
            run.held,
            planned,
            caches=run.caches,
            progress=run.kept,
            run=run.fingerprint() if run.kept is not None else None,
            on_step=lambda step, steps, _loss: run.tell("distil", step, steps),
        )
    if not made.steps:
        run.note(
            f"nothing was distilled: the budget of {recipe.auto.budget} left no time for it; give more, or --steps"
        )
        return None
    tried = ", ".join(f"{rate:.1e}: {gap:.4g}" for rate, gap in made.rates.items())
    run.note(
        f"distilled for {made.steps} steps of {min(recipe.distilled.batch_size, len(run.learned))} at learning rate "
        f"{made.learning_rate:.1e}{f' chosen on held-back inputs ({tried})' if tried else ''}; divergence from the parents' mean "
        f"prediction on held-back inputs {made.before:.4g} before, {made.after:.4g} at step {made.best}, which is kept"
    )
    return made.weights


def course(run: Staged) -> Course:
    """How long: as the recipe says, or what is left of the budget of ``auto``."""
    own, auto = run.recipe.distilled, run.recipe.auto
    rate = None if own.learning_rate == "auto" else own.learning_rate
    timed = run.recipe.scheme == "auto" and auto.steps is None
    steps = None if timed else auto.steps if run.recipe.scheme == "auto" else own.steps
    left = auto.seconds - run.elapsed() if timed else 0.0
    return Course(steps, own.batch_size, rate, left, run.recipe.seed, run.device, examples=run.inputs.size)


STAGES: dict[str, Callable[[Staged, Weights], Weights | None]] = {"distilled": distilled}
