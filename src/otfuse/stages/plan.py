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
    from otfuse.measure.rates import Rates
    from otfuse.program.export import Program
    from otfuse.stages.order import Order

_MIB = 1 << 20
_COPIES = 7  # of all weights while training: start, best, present, gradient, two moments, and what a step adds
_PASSES = 3  # forward, and backward twice as long
_TRIALS = 0.2  # of the steps, spent on learning rates and looks


def stages_plan(job: Job, ordered: Order, recipe: Recipe, size: int, rates: Rates, *, verify: bool) -> Plan:
    """The plan of the start, then of each stage; time given as a budget is taken to be used up."""
    base = job.plan(verify=verify)
    side, parents = job.pairs()[0].anchor, len(job.parents)
    shapes = side.graph.shapes
    values = sum(prod(shape) for name, shape in shapes.items() if side.graph.ties.get(name, name) == name)
    program = side.program
    rows = _kept(program)[1]
    forward = 2.0 * values * rows / rates.single  # seconds per example
    seconds = base.seconds + forward * size * parents
    told = [("start", ordered.name), ("targets", f"{parents} parents on {size} inputs")]
    memory = activations(program, set()) + 2 * 4 * values
    if "distilled" in ordered.stages:
        timed = recipe.scheme == "auto" and recipe.auto.steps is None
        steps = (recipe.auto.steps or 0) if recipe.scheme == "auto" else recipe.distilled.steps
        batch = recipe.distilled.batch_size
        memory = max(memory, _COPIES * 4.0 * values + _kept(program)[0] * batch)
        seconds += recipe.auto.seconds if timed else forward * _PASSES * batch * steps * (1 + _TRIALS)
        length = f"what is left of {recipe.auto.budget}" if timed else f"{steps} steps"
        told.append(("distilled", f"{length}, batches of {batch}"))
    told += [(name, "") for name in ordered.stages if name != "distilled"]
    return replace(base, memory_mib=max(base.memory_mib, memory / _MIB), seconds=seconds, stages=tuple(told))


def _kept(program: Program) -> tuple[float, float]:
    """Bytes of all values of a forward pass per example (what a backward pass needs), and rows of units per example."""
    number = max(1, examples(program.inputs))
    steps = [node.meta.get("val") for node in program.graph.nodes if node.op == "call_function"]
    found = {v.untyped_storage()._cdata: v.untyped_storage().nbytes() for v in steps if isinstance(v, torch.Tensor)}  # noqa: SLF001
    linear = [n.meta["val"] for n in program.graph.nodes if n.target is torch.ops.aten.linear.default]
    return sum(found.values()) / number, max((prod(v.shape[:-1]) for v in linear), default=1) / number
