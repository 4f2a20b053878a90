"""The part of the walk that makes new units: linear layers, convolutions and attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from otfuse.core.graph import NodeKind, Piece, Reading
from otfuse.flow.carried import Held, Scores, Units, row, unit_dims, varying
from otfuse.flow.nodes import contracted, reading
from otfuse.flow.registry import operator_name

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import fx

    from otfuse.flow.walk import Walk


def contraction(walk: Walk, node: fx.Node) -> Any:
    """A value times a stored matrix is linear; a value times a value is attention written out."""
    name = operator_name(node)
    if name == "linear":
        x, weight, bias = node.args[0], node.args[1], node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        inner, outer = 1, 0
    elif name in ("addmm", "baddbmm"):
        bias, x, weight, inner, outer = node.args[0], node.args[1], node.args[2], 0, 1
    elif name in ("matmul", "mm", "bmm"):
        x, weight, bias, inner, outer = node.args[0], node.args[1], None, 0, 1
    else:
        return _opaque(walk, node)
    held = walk.carried(weight)
    if isinstance(held, Held) and held.index[0].ndim == 2:  # a matrix
        return _linear(walk, node, x, held, inner, outer, walk.carried(bias))
    return _product(walk, node, x, weight)


def _linear(walk: Walk, node: fx.Node, x: Any, held: Held, inner: int, outer: int, bias: Any) -> Any:
    shape, value = walk.shape(node), walk.carried(x)
    if isinstance(value, Held):
        value = walk.source(x, value)
    last, readings, spread = len(shape) - 1, list[Reading](), tuple[int, ...]()
    if isinstance(value, Units):
        found = row(value.ids, (value.ids.ndim - 1,))
        if found is not None:
            readings = [contracted("input", found, value.ids.ndim - 1)]
            spread = tuple(d for d in found.dims if d != value.ids.ndim - 1)
    kind = NodeKind.LINEAR if readings or walk.derived(x) else NodeKind.SOURCE
    dims = (*spread, last)
    count = int(np.prod([shape[d] for d in spread])) if spread else 1
    writes, reads = _axis(held, outer), _axis(held, inner)
    if writes is None or reads is None:
        return _opaque(walk, node)
    pieces = [Piece(held.tensor, (writes[0], np.tile(writes[1], count)), reads if readings else None)]
    if isinstance(bias, Held) and (added := _axis(bias, bias.index[0].ndim - 1)) is not None:
        pieces.append(Piece(bias.tensor, (added[0], np.tile(added[1], count))))
    ids = walk.nodes.add(kind, node, shape, dims, readings=readings, pieces=pieces)
    walk.nodes.last.contracts = True
    return Units(ids)


def _axis(held: Held, dim: int) -> tuple[int, NDArray[np.int64]] | None:
    """The stored axis that a dimension runs along, and the positions on it."""
    for axis, index in enumerate(held.index):
        dims = varying(index)
        if dims == (dim,) or (not dims and index.shape[dim] == 1 and axis == min(dim, len(held.index) - 1)):
            flat = index.movedim(dim, 0).reshape(index.shape[dim], -1)[:, 0]
            return axis, flat.numpy().astype(np.int64).copy()
    return None


def _product(walk: Walk, node: fx.Node, x: Any, y: Any) -> Any:
    """Query times key gives scores; scores times value gives what attention writes."""
    left, right = walk.carried(x), walk.carried(y)
    if isinstance(left, Units) and isinstance(right, Units):
        return Scores(left, right)
    if isinstance(left, Scores) and isinstance(right, Units):
        shape = walk.shape(node)
        ids = right.ids
        place = ids.ndim - 2
        ids = ids.narrow(place, ids.shape[place] - 1, 1).expand(*ids.shape[:place], shape[-2], ids.shape[-1])
        return attend(walk, node, left.query, left.key, Units(ids), len(shape))
    return _opaque(walk, node) if walk.derived(node) else None


def attention(walk: Walk, node: fx.Node) -> Any:
    """Scaled dot product attention as one operator."""
    query, key, value = (walk.carried(a) for a in node.args[:3])
    if not all(isinstance(v, Units) for v in (query, key, value)):
        return _opaque(walk, node)
    shape, ids = walk.shape(node), value.ids
    ids = ids.narrow(ids.ndim - 2, ids.shape[-2] - 1, 1)
    if node.kwargs.get("enable_gqa") and ids.shape[-3] != shape[-3]:
        ids = ids.repeat_interleave(shape[-3] // ids.shape[-3], -3)
    return attend(walk, node, query, key, Units(ids.expand(shape)), len(shape))


def attend(walk: Walk, node: fx.Node, query: Units, key: Units, value: Units, rank: int) -> Units | None:
    """The attention node: query and key end here, the units of value come out, head by head."""
    shape = walk.shape(node)
    found = row(value.ids.expand(shape), (rank - 1,))
    asked, answered = row(query.ids, (query.ids.ndim - 1,)), row(key.ids, _key_dims(key))
    if found is None or asked is None or answered is None:
        return None
    readings = [reading("query", asked), _key_reading(answered, key), reading("value", found)]
    ids = walk.nodes.add(NodeKind.ATTENTION, node, shape, found.dims, readings=readings)
    walk.nodes.last.heads = int(np.prod([shape[d] for d in found.dims if d != rank - 1] or [1]))
    return Units(ids)


def _key_dims(key: Units) -> tuple[int, ...]:
    return unit_dims(key.ids)


def _key_reading(found: Any, key: Units) -> Reading:
    """Key units head by head; where key was transposed for the product its units stand before its places."""
    del key
    return reading("key", found)


def convolution(walk: Walk, node: fx.Node) -> Any:
    """Channels are units; a depthwise convolution keeps them."""
    held, value, shape = walk.carried(node.args[1]), walk.carried(node.args[0]), walk.shape(node)
    bias = walk.carried(node.args[2]) if len(node.args) > 2 else None  # the third argument
    groups = int(node.args[6]) if len(node.args) > 6 else 1  # type: ignore[call-overload]
    if not isinstance(held, Held):
        return _opaque(walk, node)
    dim = len(shape) - (held.index[0].ndim - 1)
    found = row(value.ids, (dim,)) if isinstance(value, Units) else None
    weight_shape = held.index[0].shape
    out = np.arange(weight_shape[0])
    pieces = [Piece(b.tensor, (0, out)) for b in (bias,) if isinstance(b, Held)]
    if groups > 1:
        if found is None or found.dims != (dim,) or weight_shape[1] != 1 or weight_shape[0] != shape[dim] != groups:
            return _opaque(walk, node)
        pieces.insert(0, Piece(held.tensor, (0, out)))
        return Units(
            walk.nodes.add(NodeKind.SCALE, node, shape, (dim,), readings=[reading("input", found)], pieces=pieces)
        )
    readings = [contracted("input", found, dim)] if found is not None else []
    pieces.insert(0, Piece(held.tensor, (0, out), (1, np.arange(weight_shape[1])) if readings else None))
    kind = NodeKind.LINEAR if readings or walk.derived(node.args[0]) else NodeKind.SOURCE
    ids = walk.nodes.add(kind, node, shape, (dim,), readings=readings, pieces=pieces)
    walk.nodes.last.contracts = True
    return Units(ids)


def _opaque(walk: Walk, node: fx.Node) -> Any:
    """Units come out that are not followed; they lie where the axes of the result are free."""
    from otfuse.flow.value import values_in
    from otfuse.flow.walk import is_free

    value = next(values_in(walk.facts.env[node]), None)
    if value is None or not value.derived:
        return None
    algebra = walk.facts.algebra
    dims = [d for d, a in enumerate(value.axes) if any(is_free(algebra, x) for x in algebra.leaves(a))]
    if not dims:
        return None
    carried = [walk.carried(a) for a in node.all_input_nodes]
    rows = [row(c.ids) for c in carried if isinstance(c, Units)]
    readings = [reading("input", found) for found in rows if found is not None]
    return Units(walk.nodes.add(NodeKind.OPAQUE, node, walk.shape(node), dims, readings=readings))
