"""The layer-level walk: the program read once more, this time for the steps a person would name (docs/method.md, 3.5)."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from otfuse.core.graph import NodeKind, Reading
from otfuse.flow.follow.numbers import Scores, row
from otfuse.flow.layers.found import reading
from otfuse.flow.layers.steps.elementwise import placed, pointwise
from otfuse.flow.layers.steps.layout import layout
from otfuse.flow.layers.steps.linear import attention, contraction, convolution, similarity
from otfuse.flow.layers.steps.norms_and_lookups import lookup, norm, pool, reduction
from otfuse.flow.layers.walk_state import Trail
from otfuse.flow.rules.operators import operator_name
from otfuse.flow.rules.registry import Family, entry_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import fx

    from otfuse.flow.layers.found import Nodes
    from otfuse.flow.rules.facts import Facts
    from otfuse.program.export import Program

_STEPS: dict[Family, Callable[[Trail, fx.Node], Any]] = {
    Family.KEEP: lambda trail, node: trail.carried(node.args[0]),
    Family.LAYOUT: layout,
    Family.ORDER: lambda trail, node: layout(trail, node) if operator_name(node) in ("roll", "flip") else None,
    Family.POINTWISE: pointwise,
    Family.CONTRACTION: contraction,
    Family.CONVOLUTION: convolution,
    Family.ATTENTION: attention,
    Family.NORM: norm,
    Family.LOOKUP: lookup,
    Family.PLACED: placed,
    Family.REDUCTION: reduction,
    Family.POOL: pool,
}


def walk(program: Program, facts: Facts) -> Nodes:
    """All layer-level nodes in the order of the forward pass, the outputs last."""
    trail, live = Trail(program, facts), program.live()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            trail.hold(node)
        elif node.op == "call_function" and node in live:
            trail.put(node, _step(trail, node))
    for node in program.outputs:
        _output(trail, node)
    return trail.nodes


def _step(trail: Trail, node: fx.Node) -> Any:
    if node.target is operator.getitem:
        items, index = trail.carried(node.args[0]), node.args[1]
        return items[index] if isinstance(items, (list, tuple)) and isinstance(index, int) else None
    entry = entry_of(node)
    step = _STEPS.get(entry.family) if entry is not None else None
    found = step(trail, node) if step is not None else None
    return found if found is not None else trail.opaque(node)


def _output(trail: Trail, node: fx.Node) -> None:
    carried = trail.carried(node)
    value = similarity(trail, node, carried) if isinstance(carried, Scores) else trail.units(node)
    found = row(value.ids) if value is not None else None
    readings = [reading("input", found)] if found is not None else []
    dims = found.dims if found is not None else ()
    if isinstance(carried, Scores) and value is not None:
        readings = [Reading("input", len(trail.nodes.found) - 1, np.arange(trail.nodes.last.size)[:, None])]
    trail.nodes.add(NodeKind.OUTPUT, node, trail.shape(node), dims, readings=readings)
