"""What a scheme of several stages would do, the memory it would take and how long, before it does."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import torch

from otfuse.align.plan import Plan, activations
from otfuse.program.inputs import examples

if TYPE_CHECKING:
    from otfuse.core.recipe import Recipe
    from otfuse.fusion.job import Job
    from otfuse.measure.probe import Side
    from otfuse.measure.rates import Rates
    from otfuse.program.export import Program
    from otfuse.stages.order import Order

_MIB = 1 << 20
_COPIES = 7  # of all weights while training: start, best, present, gradient, two moments, and what a step adds
_PASSES = 3  # forward, and backward twice as long
_TRIALS = 0.2  # of the steps, spent on learning rates and looks


def stages_plan(job: Job, ordered: Order, recipe: Recipe, size: int, rates: Rates, *, verify: bool) -> Plan:
    """The plan of the start, then of each stage; time given as a budget is taken to be used up."""
    base, side, parents = job.plan(verify=verify), job.pairs()[0].anchor, len(job.parents)
    forward = 2.0 * _values(side) * _kept(side.program)[1] / rates.single  # seconds per example
    seconds = base.seconds + forward * size * parents
    told = [("start", ordered.name), ("targets", f"{parents} parents on {size} inputs")]
    for stage in ordered.stages:
        what = ""
        if stage == "distilled":
            timed = recipe.scheme == "auto" and recipe.auto.steps is None
            steps = (recipe.auto.steps or 0) if recipe.scheme == "auto" else recipe.distilled.steps
            batch = recipe.distilled.batch_size
            seconds += recipe.auto.seconds if timed else forward * _PASSES * batch * steps * (1 + _TRIALS)
            what = f"{f'what is left of {recipe.auto.budget}' if timed else f'{steps} steps'}, batches of {batch}"
        told.append((stage, what))
    memory = max(base.memory_mib, stages_mib(side, ordered, recipe))
    return replace(base, memory_mib=memory, seconds=seconds, stages=tuple(told))


def stages_mib(side: Side, ordered: Order, recipe: Recipe) -> float:
    """The expected peak of the stages above what importing takes: weights, and a batch with all its values where one trains."""
    values = 4.0 * _values(side)
    memory = activations(side.program, set()) + 2 * values
    if "distilled" in ordered.stages:
        memory = max(memory, _COPIES * values + _kept(side.program)[0] * recipe.distilled.batch_size)
    return memory / _MIB


def _values(side: Side) -> int:
    shapes, ties = side.graph.shapes, side.graph.ties
    return sum(prod(shape) for name, shape in shapes.items() if ties.get(name, name) == name)


def _kept(program: Program) -> tuple[float, float]:
    """Bytes of all values of a forward pass per example (what a backward pass needs), and rows of units per example."""
    number = max(1, examples(program.inputs))
    steps = [node.meta.get("val") for node in program.graph.nodes if node.op == "call_function"]
    found = {v.untyped_storage()._cdata: v.untyped_storage().nbytes() for v in steps if isinstance(v, torch.Tensor)}  # noqa: SLF001
    linear = [n.meta["val"] for n in program.graph.nodes if n.target is torch.ops.aten.linear.default]
    return sum(found.values()) / number, max((prod(v.shape[:-1]) for v in linear), default=1) / number
