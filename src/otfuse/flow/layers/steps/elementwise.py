"""What meets element by element: gains and shifts, activations, sums of branches, products of values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from otfuse.core.graph import NodeKind, Piece, Reading
from otfuse.flow.follow.numbers import (
    Held,
    Reduced,
    Scores,
    Units,
    at_place,
    nodes_of,
    row,
    squeezed,
    unit_dims,
    varying,
)
from otfuse.flow.layers.found import beside, passed, reading
from otfuse.flow.rules.operators import operator_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otfuse.flow.follow.numbers import Row
    from otfuse.flow.layers.walk_state import Trail

_SUMS = ("add", "add_", "sub", "sub_", "rsub", "subtract", "subtract_")
_QUOTIENTS = ("mul", "mul_", "div", "div_", "multiply", "multiply_", "divide", "divide_")
_LINEAR_IN_UNITS = (*_SUMS, *_QUOTIENTS, "neg", "negative", "where", "masked_fill")


def pointwise(trail: Trail, node: fx.Node) -> Any:
    """What comes out of an operator that works element by element."""
    if not isinstance(node.meta.get("val"), torch.Tensor):  # extremes along a dimension, with their numbers
        return None
    operands = [a for a in [*node.args, *node.kwargs.values()] if isinstance(a, fx.Node)]
    flows = [a for a in operands if isinstance(trail.carried(a), Units)]
    scores = next((trail.carried(a) for a in operands if isinstance(trail.carried(a), Scores)), None)
    if scores is not None:
        return scores
    held = [a for a in operands if isinstance(trail.carried(a), Held) and operator_name(node) != "prelu"]
    if not flows:
        others = any(trail.derived(a) for a in operands if a not in held)
        if len(held) == 1 and not others:
            return _spread(trail, node, held[0])
        if held and operator_name(node) in _SUMS:
            return _sum(trail, node, [a for a in held if trail.source(a, trail.carried(a)) is not None])
        reduced = any(isinstance(trail.carried(a), Reduced) for a in operands)
        return Reduced() if reduced else None
    for argument in held:
        joined = _joined_by(trail, node, flows, argument)
        if joined is not None:
            return joined
    return _combined(trail, node, flows, operands)


def _spread(trail: Trail, node: fx.Node, argument: fx.Node) -> Any:
    held, shape = trail.carried(argument), trail.shape(node)
    if torch.broadcast_shapes(held.index[0].shape, shape) != torch.Size(shape):
        return None
    return Held(held.tensor, tuple(index.expand(shape) for index in held.index))


def _joined_by(trail: Trail, node: fx.Node, flows: Sequence[fx.Node], argument: fx.Node) -> Units | None:
    """A stored tensor meets a value: a gain or shift of each unit, or a table to be added."""
    value, held, shape = trail.carried(flows[0]), trail.carried(argument), trail.shape(node)
    found = row(value.ids.expand(shape)) if value.ids.ndim <= len(shape) else None
    if found is None:
        return None
    indices = [index.expand(shape) for index in held.index]
    axes = [axis for axis, index in enumerate(indices) if varying(index)]
    name = operator_name(node)
    if name in _QUOTIENTS or (name in _SUMS and all(set(varying(indices[a])) <= set(found.dims) for a in axes)):
        pieces = []
        for axis in axes or [0]:
            places = at_place(indices[axis], found)
            if places is None:
                return None
            pieces.append(Piece(held.tensor, writes=(axis, places)))
        kind = NodeKind.NORM if value.normalised and name in _QUOTIENTS else NodeKind.SCALE
        ids = trail.nodes.add(kind, node, shape, found.dims, readings=passed(value, found), pieces=pieces)
        return Units(ids)
    if name in _SUMS and trail.source(argument, held) is not None:
        return _sum(trail, node, [*flows, argument])
    return None


def _combined(trail: Trail, node: fx.Node, flows: list[fx.Node], operands: Sequence[fx.Node]) -> Units | None:
    name, shape = operator_name(node), trail.shape(node)
    first = trail.carried(flows[0])
    if first.ids.ndim > len(shape):
        return None
    if len(flows) == 1:
        if any(isinstance(trail.carried(a), Reduced) for a in operands) and name in _QUOTIENTS:
            return Units(first.ids.expand(shape), normalised=True)
        linear = name in _LINEAR_IN_UNITS or len(operands) > 1
        return Units(first.ids.expand(shape), first.normalised) if linear else _activation(trail, node, first, shape)
    second = trail.carried(flows[1])
    if _one_source(trail, first, second):  # rotations of pairs, activations written out
        return _same_source(trail, node, (first, second), shape)
    if name in _SUMS:
        return _sum(trail, node, flows)
    joined = _sum(trail, node, flows) if name == "where" else None  # here the one, there the other
    if joined is not None:
        return joined
    if name in ("where", "masked_fill", "lerp"):
        return Units(first.ids.expand(shape))
    for value, other in ((first, flows[1]), (second, flows[0])):
        if name in _QUOTIENTS and not _varies_with(value, trail.shape(other), shape):
            return _gated(trail, node, value, trail.carried(other))
    return _met(trail, node, NodeKind.PRODUCT, [("factor", first), ("factor", second)])


def _gated(trail: Trail, node: fx.Node, value: Units, gate: Units) -> Units:
    """One factor for all units of a place leaves them what they are."""
    shape = trail.shape(node)
    ids = value.ids.expand(shape)
    found, other = row(ids), row(gate.ids)
    if found is None or other is None or len(nodes_of(ids)) > 1:
        return Units(ids, value.normalised)
    readings = [reading("input", found), reading("beside", other)]
    return Units(trail.nodes.add(NodeKind.SCALE, node, shape, found.dims, readings=readings), value.normalised)


def _varies_with(value: Units, factor: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether a factor of that shape has more than one entry along the dimensions that hold the value's units."""
    lengths = [1] * (len(shape) - len(factor)) + list(factor)
    return any(lengths[d] > 1 for d in unit_dims(value.ids.expand(tuple(shape))))


def _one_source(trail: Trail, first: Units, second: Units) -> bool:
    """Both operands come from one node, with nothing but activations in between."""
    bases = {_base(trail, n) for n in nodes_of(first.ids) | nodes_of(second.ids)}
    return len(bases) == 1 and (nodes_of(first.ids) == nodes_of(second.ids) or _same_base(trail, first, second))


def _same_source(trail: Trail, node: fx.Node, operands: Sequence[Units], shape: tuple[int, ...]) -> Units:
    """A formula of several steps is one activation, seen at its last step."""
    formulas = [
        (value, index)
        for value in operands
        for index in sorted(nodes_of(value.ids))
        if trail.nodes.found[index].kind is NodeKind.ACTIVATION
    ]
    for value, index in formulas:
        if _seen_at(trail, node, index, row(value.ids.expand(shape))):
            break
    else:
        value = formulas[0][0] if formulas else operands[0]
    return Units(value.ids.expand(shape), value.normalised)


def _seen_at(trail: Trail, node: fx.Node, index: int, found: Row | None) -> bool:
    """Move the place where an activation's units can be seen to a later step, if all of them lie there in order.

    Its dimensions move along: layout operators in between may have split or merged them. Out of order it stays, since
    what is observed is numbered by position.
    """
    base = trail.nodes.found[index]
    if found is None or found.node != index or not np.array_equal(found.units.reshape(-1), np.arange(base.size)):
        return False
    base.at, base.dims = node, found.dims
    return True


def _base(trail: Trail, index: int) -> int:
    node = trail.nodes.found[index]
    return _base(trail, node.readings[0].node) if node.kind is NodeKind.ACTIVATION else index


def _activation(trail: Trail, node: fx.Node, value: Units, shape: tuple[int, ...]) -> Units | None:
    found = row(value.ids)
    if found is None:
        return None
    base = trail.nodes.found[found.node]
    formula = base.kind is NodeKind.ACTIVATION and base.dims == found.dims  # of several steps: one activation
    if formula and _seen_at(trail, node, found.node, found):
        return value
    ids = trail.nodes.add(NodeKind.ACTIVATION, node, shape, found.dims, readings=passed(value, found))
    return Units(ids)


def _sum(trail: Trail, node: fx.Node, operands: Sequence[fx.Node]) -> Units | None:
    """A junction: the skip is the operand with the fewest contractions since the last junction."""
    shape = trail.shape(node)
    rows = [(a, row(trail.carried(a).ids.expand(shape))) for a in operands]
    known = [(a, found) for a, found in rows if found is not None]
    if not known:
        return None
    if len(known) == 1 or len({found.node for _, found in known}) == 1:
        return Units(trail.carried(known[0][0]).ids.expand(shape))
    if len({found.units.size for _, found in known}) > 1:
        return None
    known.sort(key=lambda item: trail.nodes.contractions(item[1].node))
    readings = _flattened(trail, [reading("branch" if i else "skip", found) for i, (_, found) in enumerate(known)])
    readings += [r for a, found in known for r in beside(trail.carried(a).ids.expand(shape), found)]
    ids = trail.nodes.add(NodeKind.JUNCTION, node, shape, known[0][1].dims, readings=readings)
    return Units(ids)


def placed(trail: Trail, node: fx.Node) -> Units | None:
    """Rows of one value written into another: two ways into one stream, as a sum is, though each place takes but one."""
    base, rows, shape = trail.units(node.args[0]), trail.units(node.args[2]), trail.shape(node)
    if base is None or rows is None:
        return None
    into, written = row(base.ids.expand(shape)), row(rows.ids, (rows.ids.ndim - 1,))
    if into is None or written is None or into.dims != (len(shape) - 1,) or written.dims != (rows.ids.ndim - 1,):
        return None
    if into.units.size != written.units.size:
        return None
    first, second = sorted((into, written), key=lambda found: trail.nodes.contractions(found.node))
    readings = _flattened(trail, [reading("skip", first), reading("branch", second)])
    return Units(trail.nodes.add(NodeKind.JUNCTION, node, shape, into.dims, readings=readings))


def _flattened(trail: Trail, readings: list[Reading]) -> list[Reading]:
    """A sum is one junction however it is bracketed: sums of branches, and sums of tables, are opened."""
    skip, opened = readings[0], list[Reading]()
    kinds = [trail.nodes.found[r.node].kind for r in readings]
    for r, kind in zip(readings[1:], kinds[1:], strict=True):
        inner = trail.nodes.found[r.node].readings if kind is NodeKind.JUNCTION else [r]
        opened += [Reading("branch", i.node, i.units) for i in inner if i.role != "beside"]
    first = trail.nodes.found[skip.node]
    tables = first.kind is NodeKind.JUNCTION and all(
        trail.nodes.found[r.node].kind is NodeKind.SOURCE for r in [*first.readings, *opened]
    )
    return [*first.readings, *opened] if tables else [skip, *opened]


def _met(trail: Trail, node: fx.Node, kind: NodeKind, parts: Sequence[tuple[str, Units]]) -> Units | None:
    shape = trail.shape(node)
    rows = [(role, row(value.ids.expand(shape))) for role, value in parts]
    dims = {found.dims for _, found in rows if found is not None}
    if any(found is None for _, found in rows) or len(dims) != 1:
        return None
    readings = [reading(role, found) for role, found in rows if found is not None]
    return Units(trail.nodes.add(kind, node, shape, dims.pop(), readings=readings))


def _same_base(trail: Trail, first: Units, second: Units) -> bool:
    """Whether one operand is an activation of the other, unit by unit, however many activations wrote it."""
    shape = torch.broadcast_shapes(first.ids.shape, second.ids.shape)
    ours, theirs = (squeezed(trail.origins(value.ids, NodeKind.ACTIVATION).expand(shape)) for value in (first, second))
    return bool((ours == theirs).all())
