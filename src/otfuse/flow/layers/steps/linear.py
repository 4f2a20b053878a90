"""What makes new units: linear layers, convolutions and attention."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from otfuse.core.graph import NodeKind, Piece, Reading
from otfuse.flow.follow.numbers import Held, Scores, Units, row, unit_dims, varying
from otfuse.flow.layers.found import contracted, reading
from otfuse.flow.rules.operators import argument, einsum_letters, operator_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import fx

    from otfuse.flow.follow.numbers import Row
    from otfuse.flow.layers.walk_state import Trail


def contraction(trail: Trail, node: fx.Node) -> Any:
    """A value times a stored matrix is linear; a value times a value is attention written out."""
    name = operator_name(node)
    if name == "linear":
        x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
        inner, outer = 1, 0
    elif name in ("addmm", "baddbmm"):
        bias, x, weight, inner, outer = node.args[0], node.args[1], node.args[2], 0, 1
    elif name in ("matmul", "mm", "bmm"):
        x, weight, bias, inner, outer = node.args[0], node.args[1], None, 0, 1
    else:
        found = _einsum(trail, node) if name == "einsum" and len(node.args[1]) == 2 else None  # type: ignore[arg-type]
        return found if found is not None else trail.opaque(node)
    held = trail.carried(weight)
    if isinstance(held, Held) and held.index[0].ndim == 2:  # a matrix
        return _linear(trail, node, x, held, inner, outer, trail.carried(bias))
    return _product(trail, node, x, weight)


def _linear(trail: Trail, node: fx.Node, x: Any, held: Held, inner: int, outer: int, bias: Any) -> Any:
    shape, value = trail.shape(node), trail.carried(x)
    if isinstance(value, Held):
        value = trail.source(x, value)
    last, readings, spread = len(shape) - 1, list[Reading](), tuple[int, ...]()
    if isinstance(value, Units):
        found = row(value.ids, (value.ids.ndim - 1,))
        if found is not None:
            readings = [contracted("input", found, value.ids.ndim - 1)]
            spread = tuple(d for d in found.dims if d != value.ids.ndim - 1)
    kind = NodeKind.LINEAR if readings or trail.derived(x) else NodeKind.SOURCE
    dims = (*spread, last)
    count = int(np.prod([shape[d] for d in spread])) if spread else 1
    writes, reads = _axis(held, outer), _axis(held, inner)
    if writes is None or reads is None:
        return trail.opaque(node)
    pieces = [Piece(held.tensor, (writes[0], np.tile(writes[1], count)), reads if readings else None)]
    if isinstance(bias, Held) and (added := _axis(bias, bias.index[0].ndim - 1)) is not None:
        pieces.append(Piece(bias.tensor, (added[0], np.tile(added[1], count))))
    ids = trail.nodes.add(kind, node, shape, dims, readings=readings, pieces=pieces)
    trail.nodes.last.contracts = True
    _look_unflattened(trail, node)
    return Units(ids)


def _look_unflattened(trail: Trail, node: fx.Node) -> None:
    """Where batch and tokens are one dimension only for the product, units are seen where they are apart again."""
    user = next(iter(node.users), None)
    if len(node.users) != 1 or user is None or len(trail.shape(node)) != 2:
        return
    if operator_name(user) in ("view", "reshape", "_unsafe_view"):
        size, shape = trail.shape(node)[1], trail.shape(user)
        tail = next((d for d in range(len(shape)) if prod(shape[d:]) == size), 0)
        if tail > 1:
            trail.nodes.last.at, trail.nodes.last.dims = user, tuple(range(tail, len(shape)))


def _axis(held: Held, dim: int) -> tuple[int, NDArray[np.int64]] | None:
    """The stored axis that a dimension runs along, and the positions on it."""
    for axis, index in enumerate(held.index):
        dims = varying(index)
        if dims == (dim,) or (not dims and index.shape[dim] == 1 and axis == min(dim, len(held.index) - 1)):
            flat = index.movedim(dim, 0).reshape(index.shape[dim], -1)[:, 0]
            return axis, flat.numpy().astype(np.int64).copy()
    return None


def _product(trail: Trail, node: fx.Node, x: Any, y: Any) -> Any:
    """Query times key gives scores; scores times value gives what attention writes."""
    left, right = trail.carried(x), trail.carried(y)
    if isinstance(left, Units) and isinstance(right, Units):
        return Scores(left, right)
    if isinstance(left, Scores) and isinstance(right, Units):
        shape = trail.shape(node)
        ids = right.ids
        place = ids.ndim - 2
        ids = ids.narrow(place, ids.shape[place] - 1, 1).expand(*ids.shape[:place], shape[-2], ids.shape[-1])
        return attend(trail, node, left.query, left.key, Units(ids), len(shape))
    return trail.opaque(node) if trail.derived(node) else None


def _einsum(trail: Trail, node: fx.Node) -> Any:
    """The same three written with letters: a linear layer, query times key, scores times value."""
    operands: Any = node.args[1]
    x, y = operands
    inputs, output = einsum_letters(str(node.args[0]), [len(trail.shape(a)) for a in operands])
    left, right = trail.carried(x), trail.carried(y)
    inner = [c for c in inputs[0] if c in inputs[1] and c not in output]
    alone = [[c for c in one if c not in other] for one, other in (inputs, inputs[::-1])]
    if len(inner) != 1 or len(alone[1]) != 1:
        return None
    if isinstance(right, Held) and right.index[0].ndim == 2:
        if inputs[0][-1] != inner[0] or output != inputs[0][:-1] + alone[1][0]:
            return None
        return _linear(trail, node, x, right, inputs[1].index(inner[0]), inputs[1].index(alone[1][0]), None)
    if len(alone[0]) != 1 or not isinstance(right, Units):
        return None
    (asking,), (other,) = alone
    if isinstance(left, Units):
        sides = [([c for c in output if c != far] + inner) for far in (other, asking)]
        return Scores(*(_ordered(v, own, to) for v, own, to in zip((left, right), inputs, sides, strict=True)))
    if isinstance(left, Scores) and output[-1] == other:
        query = _ordered(left.query, [c for c in inputs[0] if c != inner[0]] + [other], output)
        ids = _ordered(right, inputs[1], [inner[0] if c == asking else c for c in output]).ids
        place = output.index(asking)
        ids = ids.narrow(place, ids.shape[place] - 1, 1).expand(trail.shape(node))
        return attend(trail, node, query, left.key, Units(ids), len(output))
    return None


def _ordered(value: Units, letters: Sequence[str], wanted: Sequence[str]) -> Units:
    return Units(value.ids.permute([list(letters).index(c) for c in wanted]), value.normalised)


def attention(trail: Trail, node: fx.Node) -> Any:
    """Scaled dot product attention as one operator."""
    query, key, value = (trail.carried(a) for a in node.args[:3])
    if not all(isinstance(v, Units) for v in (query, key, value)):
        return trail.opaque(node)
    shape, ids = trail.shape(node), value.ids
    ids = ids.narrow(ids.ndim - 2, ids.shape[-2] - 1, 1)
    if node.kwargs.get("enable_gqa") and ids.shape[-3] != shape[-3]:
        ids = ids.repeat_interleave(shape[-3] // ids.shape[-3], -3)
    return attend(trail, node, query, key, Units(ids.expand(shape)), len(shape))


def attend(trail: Trail, node: fx.Node, query: Units, key: Units, value: Units, rank: int) -> Units | None:
    """The attention node: query and key end here, the units of value come out, head by head."""
    shape = trail.shape(node)
    asked, answered = row(query.ids, (query.ids.ndim - 1,)), row(key.ids, unit_dims(key.ids))
    heads = asked.dims[:-1] if asked is not None and query.ids.ndim == rank else ()
    found = row(value.ids.expand(shape), (*heads, rank - 1))
    if found is None or asked is None or answered is None:
        return None
    groups = [0]
    if 0 in found.dims:  # heads laid out along the batch are the same units in every example
        rows = [(r.units if 0 in r.dims else r.units[None].repeat(shape[0], 0)) for r in (asked, found)]
        names = [(a.tobytes(), v.tobytes()) for a, v in zip(*rows, strict=True)]
        groups = [sorted(set(names), key=names.index).index(name) for name in names]
        asked, answered, found = (_first_heads(r, groups) for r in (asked, answered, found))
    readings = [reading("query", asked), reading("key", answered), reading("value", found)]
    ids = trail.nodes.add(NodeKind.ATTENTION, node, shape, found.dims, readings=readings)
    if 0 in found.dims:
        trail.nodes.last.size = found.units.size
        ids = ids[torch.tensor([groups.index(group) for group in groups])]
    trail.nodes.last.heads = int(np.prod(found.units.shape[:-1], dtype=np.int64))
    return Units(ids)


def _first_heads(found: Row, groups: Sequence[int]) -> Row:
    """The row with every head that stands along dimension 0 once."""
    if 0 not in found.dims:
        return found
    first = [groups.index(group) for group in sorted(set(groups))]
    return replace(found, units=found.units[first])


def similarity(trail: Trail, node: fx.Node, scores: Scores) -> Units | None:
    """Scores that are not used as attention: units of both sides are multiplied one by one and summed."""
    sides = [(v, row(v.ids, unit_dims(v.ids))) for v in (scores.query, scores.key)]
    readings = [reading("factor", found) for _, found in sides if found is not None]
    if len(readings) < 2 or len({len(r.units) for r in readings}) > 1:
        return None
    ids = trail.nodes.add(NodeKind.PRODUCT, node, trail.shape(node), (), readings=readings)
    trail.nodes.last.size = len(readings[0].units)
    return Units(ids)


def convolution(trail: Trail, node: fx.Node) -> Any:
    """Channels are units; a depthwise convolution keeps them."""
    held, value, shape = trail.carried(node.args[1]), trail.carried(node.args[0]), trail.shape(node)
    bias = trail.carried(argument(node, 2, "bias"))
    groups = int(argument(node, 6, "groups", 1))
    if not isinstance(held, Held):
        return trail.opaque(node)
    dim = len(shape) - (held.index[0].ndim - 1)
    found = row(value.ids, (dim,)) if isinstance(value, Units) else None
    weight_shape = held.index[0].shape
    out = np.arange(weight_shape[0])
    pieces = [Piece(b.tensor, (0, out)) for b in (bias,) if isinstance(b, Held)]
    if groups > 1:
        if found is None or found.dims != (dim,) or weight_shape[1] != 1 or weight_shape[0] != shape[dim] != groups:
            return trail.opaque(node)
        pieces.insert(0, Piece(held.tensor, (0, out)))
        return Units(
            trail.nodes.add(NodeKind.SCALE, node, shape, (dim,), readings=[reading("input", found)], pieces=pieces)
        )
    readings = [contracted("input", found, dim)] if found is not None else []
    pieces.insert(0, Piece(held.tensor, (0, out), (1, np.arange(weight_shape[1])) if readings else None))
    kind = NodeKind.LINEAR if readings or trail.derived(node.args[0]) else NodeKind.SOURCE
    ids = trail.nodes.add(kind, node, shape, (dim,), readings=readings, pieces=pieces)
    trail.nodes.last.contracts = True
    return Units(ids)
