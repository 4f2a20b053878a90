"""What a space is used for, seen from the layer-level nodes: its kind and its name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from otfuse.core.graph import NodeKind

if TYPE_CHECKING:
    from otfuse.core.graph import FlowNode
    from otfuse.core.space import Space

_PASSING = (NodeKind.ACTIVATION, NodeKind.SCALE, NodeKind.NORM, NodeKind.PRODUCT)
_MADE = (NodeKind.LINEAR, NodeKind.JUNCTION, NodeKind.ATTENTION)


def uses_of(nodes: tuple[FlowNode, ...]) -> dict[str, str]:
    """What attention does with a space that its query, key or value carry, also where it is written out."""
    uses: dict[str, str] = {}
    for node in nodes:
        if node.kind is not NodeKind.ATTENTION:
            continue
        query, key, value = (
            {s for r in node.readings if r.role == role for s in nodes[r.node].written_spaces}
            for role in ("query", "key", "value")
        )
        heads = key & value if node.heads > 1 else set[str]()
        uses |= dict.fromkeys(heads, "heads") | dict.fromkeys((query & key) - value, "query-key")
        uses |= dict.fromkeys(value - key, "value-output") | dict.fromkeys(query - key, "queries")
    return uses


def as_used(space: Space, uses: dict[str, str]) -> Space:
    """The space with the kind that attention gives it."""
    kind = uses.get(space.id, space.kind) if space.kind == "units" and space.pinned is None else space.kind
    return replace(space, kind=kind, name=space.name.removesuffix(space.kind) + kind)


def streams_of(nodes: tuple[FlowNode, ...]) -> set[str]:
    """Spaces that branches of a model are added up in.

    Sums within a layer (a bias of every expert, the terms of an activation function) are none.
    """
    return {
        space
        for node in nodes
        if node.kind is NodeKind.JUNCTION and _joins(nodes, node)
        for space in node.written_spaces
    }


def _joins(nodes: tuple[FlowNode, ...], junction: FlowNode) -> bool:
    """Whether a layer made one summand of another, or different layers made two of them."""
    summands = {reading.node for reading in junction.readings}
    makers = {_maker(nodes, index) for index in summands}
    behind = {index: _behind(nodes, index) for index in makers}
    made = [i for i in makers if nodes[i].kind in _MADE or any(nodes[j].kind in _MADE for j in behind[i])]
    return len(made) > 1 or any(first in behind[other] for first in makers for other in makers)


def _maker(nodes: tuple[FlowNode, ...], index: int) -> int:
    """What made the units of a node, before activations, gains and products with themselves."""
    while nodes[index].kind in _PASSING and nodes[index].readings:
        index = nodes[index].readings[-1].node
    return index


def _behind(nodes: tuple[FlowNode, ...], index: int) -> set[int]:
    found, open_nodes = set[int](), [index]
    while open_nodes:
        new = {reading.node for reading in nodes[open_nodes.pop()].readings} - found
        found |= new
        open_nodes += new
    return found


def as_stream(space: Space, streams: set[str]) -> Space:
    """One of the streams is named after the module that holds all of its members."""
    if space.id not in streams:
        return space
    paths = [m.tensor.split(".") for m in space.members]
    common = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
    return replace(space, kind="stream", name=" ".join([".".join(common), "stream"]).strip())
