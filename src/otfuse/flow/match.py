"""Which node and which space of one model corresponds to which of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otfuse.errors import MatchError

if TYPE_CHECKING:
    from otfuse.core.graph import FlowGraph


def require_match(
    anchor: FlowGraph, source: FlowGraph, names: tuple[str, str], *, aside: frozenset[str] = frozenset()
) -> None:
    """MatchError unless both graphs have the same nodes in the same order and the same stored tensors.

    Sizes may differ: along spaces, not along pinned axes (classes, vocabulary, places), but for tensors set ``aside``.
    """
    where = f"{names[1]} cannot be fused into {names[0]}"
    ours, theirs = set(anchor.shapes), set(source.shapes)
    if ours != theirs:
        odd = min(ours ^ theirs)
        side = "the anchor" if odd in ours else "the source"
        raise MatchError(
            f"{where}: their architectures differ (only {side} has {odd!r}); "
            "give models of the same class, depth and options"
        )
    for name, first in anchor.ties.items():
        if source.ties[name] != source.ties[first]:
            raise MatchError(
                f"{where}: {name!r} and {first!r} are one tensor in the anchor and two in the source, of which one would be "
                "lost; take the other model as anchor, or untie the anchor's (tie_word_embeddings: false)"
            )
    for a, s in zip(anchor.nodes, source.nodes, strict=False):
        if (a.kind, a.name) != (s.kind, s.name):
            raise MatchError(f"{where}: their forward passes differ at {a.name or a.where} ({a.kind} against {s.kind})")
    if len(anchor.nodes) != len(source.nodes):
        raise MatchError(f"{where}: their forward passes have {len(anchor.nodes)} and {len(source.nodes)} steps")
    free = {(m.tensor, m.axis) for space in anchor.spaces if space.pinned is None for m in space.members}
    free |= {(m.tensor, m.axis) for space in source.spaces if space.pinned is None for m in space.members}
    for name, shape in anchor.shapes.items():
        if name in anchor.unread or anchor.ties.get(name, name) in aside:
            continue
        first = anchor.ties.get(name, name)
        for axis, (n, m) in enumerate(zip(shape, source.shapes[name], strict=True)):
            if n != m and (first, axis) not in free:
                raise MatchError(
                    f"{where}: axis {axis} of {name!r} has {n} places in the anchor and {m} in the source, and these "
                    "are not interchangeable units; give models with the same classes, vocabulary and input size"
                )
