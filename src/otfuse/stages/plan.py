"""What a scheme of several stages would do, the memory it would take and how long, before it does."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import torch

from otfuse.align.plan import Plan, activations, structure
from otfuse.calibrate.layers import calibrated_layers
from otfuse.calibrate.run import tried_with, tries
from otfuse.calibrate.waiting import IN_MEMORY
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
_BATCHES = 4  # of a batch's outputs beside the parents': the merged model's, their mean, inputs with targets, products
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
        if stage == "calibrated":
            own, count = recipe.calibrated, tries(recipe.calibrated)
            sums = _calibrating(side, size, parents, norms=own.norms)
            turns = own.sweeps + count * min(tried_with(side.program) / max(size, 1), 1)
            seconds += turns * (sums.single / rates.single + sums.double / rates.double)
    memory = max(base.memory_mib, stages_mib(side, ordered, recipe, size, parents))
    return replace(base, memory_mib=memory, seconds=seconds, stages=tuple(told))


def stages_mib(side: Side, ordered: Order, recipe: Recipe, size: int, parents: int) -> float:
    """The expected peak of the stages above what importing takes: weights, and a batch with all its values where one trains."""
    values = 4.0 * _values(side)
    memory = activations(side.program, set()) + 2 * values
    if "calibrated" in ordered.stages:
        memory = max(memory, 2 * values + _calibrating(side, size, parents, norms=recipe.calibrated.norms).memory)
    if "distilled" in ordered.stages:
        memory = max(memory, _COPIES * values + _kept(side.program)[0] * recipe.distilled.batch_size)
    return structure(side.program) / _MIB + memory / _MIB


class _Calibrating(NamedTuple):
    """Bytes held beside weights, and floating operations of one sweep in either precision."""

    memory: float
    single: float
    double: float


def _calibrating(side: Side, size: int, parents: int, *, norms: bool) -> _Calibrating:
    """Sums and a batch of the widest group of layers, what waits for all inputs; forward passes, products, solving."""
    number = max(1, examples(side.program.inputs))
    groups = calibrated_layers(side.program, side.graph, norms=norms).groups
    here = waits = single = double = 0.0
    for i, group in enumerate(groups):
        shapes = [tuple(layer.form.matrix(layer.form.weight.meta["val"]).shape) for layer in group]
        count, reads, writes = shapes[0][0], shapes[0][2], sum(shape[1] for shape in shapes)
        given = sum(4.0 * prod(layer.observed) for layer in group)
        rows = given / (4 * count * writes)
        here = max(here, 8.0 * count * reads * (reads + writes) + (parents + _BATCHES) * given)
        if i + 1 < len(groups):
            waits = max(waits, (parents + 1) * (given + 4 * count * rows * reads) * size / number)
        single += 2 * count * rows * reads * ((parents + 2) * writes + reads) * size / number
        double += count * reads**2 * (reads / 3 + 4 * writes)
    return _Calibrating(here + min(waits, IN_MEMORY), single, double)


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
