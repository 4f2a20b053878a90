"""What each stage does: weights go in, weights come out, by first stored name (None: nothing was done). A further stage is one function and one line here."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from otfuse.calibrate.run import calibrate, same_steps
from otfuse.train.distil import Course, distil
from otfuse.train.lesson import Lesson
from otfuse.train.refine import RATES, refine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from otfuse.calibrate.between import Between
    from otfuse.calibrate.run import Calibration
    from otfuse.core.dataset import Dataset
    from otfuse.measure.probe import Side
    from otfuse.stages.staged import Staged
    from otfuse.train.distil import Distilled

    Weights = dict[str, Tensor]


_STEPS = 200  # of refining, where the recipe leaves it open
_NEARER = 1.5  # times as near as what was calibrated must a parent be to be trained in its place (docs/experiments.md)


def distilled(run: Staged, weights: Weights) -> Weights | None:
    """All weights trained towards what the parents predict together; the best on held-back inputs is given back."""
    anchor, recipe, planned = run.parents[0], run.recipe, course(run)
    if planned.steps == 0 or (planned.steps is None and not recipe.auto.seconds):
        run.note("nothing was distilled: the recipe leaves no steps or time for it (auto.steps, auto.budget)")
        return None
    weights = _nearest(run, weights) if recipe.scheme == "auto" else weights
    planned = course(run)  # what is left of a budget by now
    with run.clock.stage("distil"):
        made = distil(
            anchor.module,
            weights,
            Lesson(anchor.module, run.inputs, run.targets),
            run.learned,
            run.held,
            planned,
            caches=run.caches,
            **run.learning("distilled", "distil"),
        )
    if not made.steps:
        run.note(
            f"nothing was distilled: the budget of {recipe.auto.budget} left no time for it; give more, or --steps"
        )
        return None
    run.note(told("distilled", made, min(recipe.distilled.batch_size, len(run.learned))))
    return made.weights


def _nearest(run: Staged, weights: Weights) -> Weights:
    """What `auto` trains: what it has made, unless a parent is far nearer to what all of them predict together.

    A parent is itself a part of that mean, and mostly was trained on these inputs: a fair judge would find it less near. An average
    that could not be calibrated is a worse start than a parent, near or not.
    """
    anchor = run.sides[0]
    fit = [i for i, side in enumerate(run.sides) if same_steps(anchor.program, side.program)]  # can stand in it
    found = {i: {name: run.sides[i].weights[name] for name in weights} for i in fit}
    gaps, ours = {i: run.departure(theirs) for i, theirs in found.items()}, run.departure(weights)
    best = min(fit, key=gaps.__getitem__)
    if (run.unequal or len(fit) == len(run.sides)) and gaps[best] * _NEARER >= ours:
        return weights
    run.note(
        f"distilled from {run.parents[best].name}: its divergence from the parents' mean prediction on held-back inputs is {gaps[best]:.4g}, "
        f"that of what was made of all {ours:.4g}"
    )
    unread = set(anchor.graph.unread)  # what no prediction reads stays the anchor's
    return {name: own if name in unread else found[best][name].to(own.dtype) for name, own in weights.items()}


def _alike(run: Staged) -> bool:
    """Whether weights of any parent can stand in the anchor, layer by layer."""
    return all(same_steps(run.sides[0].program, side.program) for side in run.sides)


def course(run: Staged) -> Course:
    """How long: as the recipe says, or what is left of the budget of ``auto``."""
    own, auto = run.recipe.distilled, run.recipe.auto
    rate = None if own.learning_rate == "auto" else own.learning_rate
    timed = run.recipe.scheme == "auto" and auto.steps is None
    steps = None if timed else auto.steps if run.recipe.scheme == "auto" else own.steps
    left = auto.seconds - run.elapsed() if timed else 0.0
    return Course(steps, own.batch_size, rate, left, run.recipe.seed, run.device, examples=run.inputs.size)


def refined(run: Staged, weights: Weights) -> Weights:
    """The maps learned, and no weight; begins where the scheme `aligned` ended."""
    own = run.recipe.refined
    rate = None if own.learning_rate == "auto" else own.learning_rate
    steps = _STEPS if own.steps == "auto" else own.steps
    with run.clock.stage("refine"):
        found, run.in_basis, made = refine(
            run.parents[0].module,
            run.carried(),
            Lesson(run.parents[0].module, run.inputs, run.targets),
            run.learned,
            run.held,
            Course(steps, own.batch_size, rate, 0.0, run.recipe.seed, run.device, rates=RATES),
            soft=own.soft == "units",
            **run.learning("refined", "refine"),
        )
    run.note(told("refined", made, min(own.batch_size, len(run.learned))))
    return {name: found[name].to(own.dtype) if name in found else own for name, own in weights.items()}


def calibrated(run: Staged, weights: Weights) -> Weights | None:
    """Every linear layer solved again in closed form. Where nothing follows that learns, no inputs are kept back from it.

    In `auto` the plain average is calibrated too, and the one of both is taken that departs least on held-back inputs: aligning
    first matters little on images, and decides on text (docs/experiments.md).
    """
    recipe = run.recipe
    if not run.unequal and not _alike(run):
        run.note(
            "nothing was calibrated: the models differ in operators or in sizes that no exact maps join, and layers are solved only "
            "where they correspond"
        )
        return None
    if run.unequal and run.in_basis is not None:
        run.note(
            "nothing was calibrated: refined maps do not join layers of other sizes; start calibrated from aligned"
        )
        return None
    alone = recipe.scheme == "calibrated"
    if alone:
        run.note(
            "all inputs were calibrated with: figures of stages on held-back inputs are of inputs that it has seen"
        )
    data = run.inputs if alone else run.inputs.take(run.learned)
    with run.clock.stage("calibrate"):
        made = _solved(run, run.parents_in_basis(), weights, data)
        if recipe.scheme == "auto" and run.moved and not run.unequal:
            plain = _solved(run, run.sides, run.plain(), data)
            gaps = [run.departure(own.weights) for own in (made, plain)]
            run.note(
                f"calibrated from the {('aligned', 'plain')[gaps[1] < gaps[0]]} average: divergence from the parents' mean prediction on "
                f"held-back inputs {gaps[0]:.4g} from the aligned one, {gaps[1]:.4g} from the plain one"
            )
            made = plain if gaps[1] < gaps[0] else made
    run.note(*made.notes)
    unread = set(run.sides[0].graph.unread)  # what no prediction reads stays the anchor's
    return {name: own if name in unread else made.weights.get(name, own).to(own.dtype) for name, own in weights.items()}


def _solved(run: Staged, parents: Sequence[Side | Between], start: Weights, data: Dataset) -> Calibration:
    names = [parent.name for parent in run.parents]
    tell = partial(run.tell, "calibrate")
    return calibrate(parents, start, data, run.recipe.calibrated, run.weights, tell, names=names)


def told(what: str, made: Distilled, batch: int) -> str:
    """What is said of a run of gradient steps."""
    tried = ", ".join(f"{rate:.1e}: {gap:.4g}" for rate, gap in made.rates.items())
    chosen = f" chosen on held-back inputs ({tried})" if tried else ""
    return (
        f"{what} for {made.steps} steps of {batch} at learning rate {made.learning_rate:.1e}{chosen}; divergence from the parents' "
        f"mean prediction on held-back inputs {made.before:.4g} before, {made.after:.4g} at step {made.best}, which is kept"
    )


STAGES: dict[str, Callable[[Staged, Weights], Weights | None]] = {
    "calibrated": calibrated,
    "distilled": distilled,
    "refined": refined,
}
