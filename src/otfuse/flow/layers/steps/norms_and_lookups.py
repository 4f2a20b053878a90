"""Norms, lookups, reductions and pools: units come through, places may not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otfuse.core.graph import NodeKind, Piece
from otfuse.flow.follow.numbers import Held, Reduced, Units, at_place, nodes_of, row, unit_dims
from otfuse.flow.layers.found import passed, reading
from otfuse.flow.rules.operators import argument, operator_name, reduced_dimensions

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import fx

    from otfuse.flow.layers.walk_state import Trail


def norm(trail: Trail, node: fx.Node) -> Any:
    """The units that came in, divided by a statistic; gains, biases and running statistics are pieces."""
    value, shape = trail.units(node.args[0]), trail.shape(node)
    found = row(value.ids) if value is not None else None
    if value is None or found is None:
        return None
    batch = operator_name(node) in ("batch_norm", "instance_norm", "group_norm")
    pieces = []
    for item in [*node.args[1:], *node.kwargs.values()]:
        held = trail.carried(item)
        if isinstance(held, Held):
            lead = 1 if batch else len(shape) - len(held.index)
            for axis, index in enumerate(held.index):
                places = at_place(_aligned(index, lead + axis, shape), found)
                if places is not None:
                    pieces.append(Piece(held.tensor, writes=(axis, places)))
    readings = passed(value, found)
    return Units(trail.nodes.add(NodeKind.NORM, node, shape, found.dims, readings=readings, pieces=pieces))


def _aligned(index: torch.Tensor, dim: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Positions along a stored axis, expanded to the value's shape; a vector lies along ``dim``."""
    if index.ndim == 1:
        index = index.reshape([-1 if d == dim else 1 for d in range(len(shape))])
    return index.expand(shape)


def lookup(trail: Trail, node: fx.Node) -> Any:
    """A row of a stored table is a source; rows of a value keep their units."""
    shape, held = trail.shape(node), trail.carried(node.args[0])
    if operator_name(node) == "embedding" and isinstance(held, Held):
        pieces = [Piece(held.tensor, writes=(1, held.index[1][0].numpy().copy()))] if held.index[1].numel() else []
        return Units(trail.nodes.add(NodeKind.SOURCE, node, shape, (len(shape) - 1,), pieces=pieces))
    value = trail.units(node.args[0])
    places = _indexed(node, value.ids.ndim) if value is not None else None
    if value is None or places is None or set(places) & set(unit_dims(value.ids)):
        return None
    ids, together = value.ids, places == list(range(places[0], places[-1] + 1))
    for d in sorted(places, reverse=True):
        ids = ids.select(d, 0)
    if operator_name(node) == "gather":  # it may read less of the other dimensions than there is
        ids = ids[tuple(slice(n) for d, n in enumerate(shape) if d not in places)]
    for _ in range(len(shape) - ids.ndim):  # the numbers' own dimensions stand where the first place was
        ids = ids.unsqueeze(places[0] if together else 0)
    return Units(ids.expand(shape), value.normalised)


def _indexed(node: fx.Node, rank: int) -> list[int] | None:
    """Dimensions that are read by number."""
    name = operator_name(node)
    if name == "index":
        return [i for i, given in enumerate(argument(node, 1)) if given is not None]
    return [int(argument(node, 1)) % rank] if name in ("index_select", "gather") else None


def reduction(trail: Trail, node: fx.Node) -> Any:
    """Summed over units: a statistic. Summed over places: the units that stand there."""
    value, shape = trail.carried(node.args[0]), trail.shape(node)
    if not isinstance(value, Units):
        return value if isinstance(value, Reduced) else None
    kept, rank = value.ids, value.ids.ndim
    gone = reduced_dimensions(node, rank)
    if set(gone) & set(unit_dims(value.ids)):
        return Reduced()
    added = _added(trail, node, value, gone) if operator_name(node) in ("sum", "mean") else None
    if added is not None:
        return added
    for d in sorted(gone, reverse=True):
        last = kept.shape[d] - 1
        kept = kept.narrow(d, last, 1) if len(shape) == rank else kept.select(d, last)
    return Units(kept, value.normalised)


def _added(trail: Trail, node: fx.Node, value: Units, gone: Sequence[int]) -> Units | None:
    """A sum over places where different nodes stand (stacked branches) is a junction."""
    shape = trail.shape(node)
    along = value.ids.movedim(tuple(gone), tuple(range(len(gone)))).flatten(0, len(gone) - 1)
    if len(nodes_of(value.ids)) < 2 or any(len(nodes_of(part)) != 1 for part in along):
        return None
    rows = [row(value.ids, writer=writer) for writer in sorted(nodes_of(value.ids))]
    found = [r for r in rows if r is not None]
    if len(found) < len(rows) or len({(r.dims, r.units.tobytes()) for r in found}) > 1:
        return None
    found.sort(key=lambda r: trail.nodes.contractions(r.node))
    keep = len(shape) == value.ids.ndim
    dims = tuple(d if keep else d - sum(g < d for g in gone) for d in found[0].dims)
    readings = [reading("branch" if i else "skip", r) for i, r in enumerate(found)]
    return Units(trail.nodes.add(NodeKind.JUNCTION, node, shape, dims, readings=readings))


def pool(trail: Trail, node: fx.Node) -> Any:
    """Places change in number, units pass."""
    value, shape = trail.units(node.args[0]), trail.shape(node)
    if value is None:
        return None
    ids = value.ids
    for d in range(ids.ndim):
        if ids.shape[d] != shape[d]:
            ids = ids.narrow(d, 0, 1)
    return Units(ids.expand(shape))
