"""What makes new units: linear layers, convolutions and attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from otfuse.core.graph import NodeKind, Piece, Reading
from otfuse.flow.carried import Held, Scores, Units, row, unit_dims, varying
from otfuse.flow.nodes import contracted, reading
from otfuse.flow.registry import argument, operator_name

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import fx

    from otfuse.flow.trail import Trail


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
        return trail.opaque(node)
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
    return Units(ids)


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
    found = row(value.ids.expand(shape), (rank - 1,))
    asked, answered = row(query.ids, (query.ids.ndim - 1,)), row(key.ids, unit_dims(key.ids))
    if found is None or asked is None or answered is None:
        return None
    readings = [reading("query", asked), reading("key", answered), reading("value", found)]
    ids = trail.nodes.add(NodeKind.ATTENTION, node, shape, found.dims, readings=readings)
    trail.nodes.last.heads = int(np.prod([shape[d] for d in found.dims if d != rank - 1] or [1]))
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
