"""What a space is used for, seen from the layer-level nodes: its kind and its name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from otfuse.core.graph import NodeKind

if TYPE_CHECKING:
    from otfuse.core.graph import FlowNode
    from otfuse.core.space import Space


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


def as_stream(space: Space, streams: set[str]) -> Space:
    """A space that a junction writes is a stream, named after the module that holds all of its members."""
    if space.id not in streams:
        return space
    paths = [m.tensor.split(".") for m in space.members]
    common = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
    return replace(space, kind="stream", name=" ".join([".".join(common), "stream"]).strip())
