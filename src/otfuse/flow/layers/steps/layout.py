"""Operators that move elements: run on the numbers of the units, so that no layout is written twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from otfuse.core.graph import NodeKind
from otfuse.flow.follow.numbers import NOTHING, Held, Scores, Units, compact, nodes_of, row, unit_dims
from otfuse.flow.follow.run_on_numbers import rerun
from otfuse.flow.layers.found import reading
from otfuse.flow.rules.operators import argument, operator_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx

    from otfuse.flow.layers.walk_state import Trail


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
    """Cat and stack: along tokens values lie side by side; along units, or heads, they become a CONCAT."""
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
    stacked = operator_name(node) == "stack"
    own = [c.ids.unsqueeze(dim) if stacked else c.ids for c in carried if c is not None]
    if len({n for part in own for n in nodes_of(part)}) == 1 or not (
        any(dim in unit_dims(part) for part in own) or (len(own) == len(parts) and _apart(trail, ids, dim))
    ):
        return Units(ids)
    rows = [row(part) for part in own]
    dims = tuple(sorted({dim}.union(*(found.dims for found in rows if found is not None))))
    if len(own) < len(parts) or dims[0] != dim or any(found is None or {dim, *found.dims} != {*dims} for found in rows):
        return None
    readings = [reading("part", found) for found in rows if found is not None]
    return Units(trail.nodes.add(NodeKind.CONCAT, node, tuple(ids.shape), dims, readings=readings))


def _apart(trail: Trail, ids: torch.Tensor, dim: int) -> bool:
    """Whether places along a dimension are different units of one node: heads that came apart for norms of their own."""
    behind = trail.origins(ids, NodeKind.NORM, NodeKind.SCALE, NodeKind.ACTIVATION)
    return len(nodes_of(behind)) == 1 and dim in unit_dims(behind)
