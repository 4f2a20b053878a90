"""Operators that move elements: run on the numbers of the units, so that no layout is written twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from otfuse.core.graph import NodeKind
from otfuse.flow.carried import NOTHING, Held, Scores, Units, nodes_of, row, unit_dims
from otfuse.flow.nodes import reading
from otfuse.flow.registry import argument, operator_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otfuse.flow.trail import Trail


def layout(trail: Trail, node: fx.Node) -> Any:
    """What comes out of a layout operator: the same units, elsewhere."""
    operand = node.args[0]
    if isinstance(operand, (list, tuple)):
        return _joined(trail, node, operand)
    first = trail.carried(operand)
    if isinstance(first, Units):
        moved = _moved(trail, node, {operand: first.ids})
        if isinstance(moved, torch.Tensor):
            return Units(moved, first.normalised)
        return [Units(ids, first.normalised) for ids in moved]
    if isinstance(first, Held) and operator_name(node) not in ("pad", "constant_pad_nd"):
        parts = [_moved(trail, node, {operand: index}) for index in first.index]
        if isinstance(parts[0], torch.Tensor):
            return Held(first.tensor, tuple(parts))
        return [Held(first.tensor, index) for index in zip(*parts, strict=True)]
    return first if isinstance(first, Scores) else None


def _joined(trail: Trail, node: fx.Node, parts: Sequence[Any]) -> Any:
    """Cat and stack: along tokens values lie side by side; along units they become a CONCAT."""
    carried = [trail.units(part) for part in parts]
    if all(c is None for c in carried):
        return None
    known = {
        part: c.ids if c is not None else torch.full(trail.shape(part), NOTHING)
        for part, c in zip(parts, carried, strict=True)
    }
    dim = int(argument(node, 1, "dim", 0)) % len(trail.shape(node))
    ids = _moved(trail, node, known)
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


def _moved(trail: Trail, node: fx.Node, known: Mapping[Any, torch.Tensor]) -> Any:
    """The operator run on numbers instead of values."""
    if operator_name(node) in ("view", "_unsafe_view"):  # numbers may lie in memory in another order than values
        return known[node.args[0]].reshape(trail.shape(node))
    if operator_name(node) in ("pad", "constant_pad_nd"):  # no unit stands in the margins
        return torch.nn.functional.pad(known[node.args[0]], argument(node, 1), value=NOTHING)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: known.get(n, n))
    return node.target(*args, **kwargs)  # type: ignore[operator]
