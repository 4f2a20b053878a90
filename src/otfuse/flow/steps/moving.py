"""Operators that move elements: run on the numbers of the units, so that no layout is written twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from otfuse.core.graph import NodeKind
from otfuse.flow.carried import NOTHING, Held, Scores, Units, compact, nodes_of, row, unit_dims
from otfuse.flow.nodes import reading
from otfuse.flow.registry import argument, operator_name
from otfuse.flow.rerun import rerun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx

    from otfuse.flow.trail import Trail


def layout(trail: Trail, node: fx.Node) -> Any:
    """What comes out of a layout operator: the same units, elsewhere."""
    operand = node.args[0]
    if isinstance(operand, (list, tuple)):
        return _joined(trail, node, operand)
    first = trail.carried(operand)
    if isinstance(first, Units):
        moved = rerun(node, {operand: first.ids})
        if isinstance(moved, torch.Tensor):
            return Units(compact(moved), first.normalised)
        return [Units(ids, first.normalised) for ids in moved]
    if isinstance(first, Held) and operator_name(node) not in ("pad", "constant_pad_nd"):
        parts = [rerun(node, {operand: index}) for index in first.index]
        if isinstance(parts[0], torch.Tensor):
            return Held(first.tensor, tuple(parts))
        return [Held(first.tensor, index) for index in zip(*parts, strict=True)]
    return first if isinstance(first, Scores) else None


def _joined(trail: Trail, node: fx.Node, parts: Sequence[Any]) -> Any:
    """Cat and stack: along tokens values lie side by side; along units they become a CONCAT."""
    scores = next((c for c in map(trail.carried, parts) if isinstance(c, Scores)), None)
    if scores is not None:  # scores of further places, such as sinks
        return scores
    carried = [trail.units(part) for part in parts]
    if all(c is None for c in carried):
        return None
    known = {
        part: c.ids if c is not None else torch.tensor(NOTHING).expand(trail.shape(part))
        for part, c in zip(parts, carried, strict=True)
    }
    dim = int(argument(node, 1, "dim", 0)) % len(trail.shape(node))
    ids = compact(rerun(node, known))
    along_units = operator_name(node) != "stack" and any(c is not None and dim in unit_dims(c.ids) for c in carried)
    if not along_units or len({n for c in carried if c is not None for n in nodes_of(c.ids)}) == 1:
        return Units(ids)
    readings = []
    for c in carried:
        found = row(c.ids) if c is not None else None
        if found is None or found.dims != (dim,):
            return None
        readings.append(reading("part", found))
    return Units(trail.nodes.add(NodeKind.CONCAT, node, tuple(ids.shape), (dim,), readings=readings))
