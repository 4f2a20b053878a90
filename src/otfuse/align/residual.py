"""Residual policies: how a junction mixes the maps of its skip and its branches (docs/method.md, 6.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from otfuse.core.graph import NodeKind
from otfuse.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otfuse.align.pair import Pair
    from otfuse.measure.moments import Affine, Moments, Transform


def junction_weights(
    policy: str, roles: Sequence[str], magnitudes: Sequence[torch.Tensor]
) -> list[torch.Tensor | float]:
    """One weight per part of a junction, summing to one.

    ``mean`` weighs all alike, ``skip`` and ``branch`` take one side; ``scalar`` and ``matrix`` weigh by the mean
    absolute value of each part in the anchor, over all units or unit by unit. A part that is alone has weight one.
    """
    count = len(roles)
    if count == 1 or policy == "mean":
        return [1.0 / count] * count
    if policy in ("skip", "branch"):
        chosen = [role == policy for role in roles]
        return [float(c) / max(sum(chosen), 1) for c in chosen] if any(chosen) else [1.0 / count] * count
    if len(magnitudes) != count:
        raise DataError(f"otfusion.residual {policy}: weighs by activations; give data, or use residual: mean")
    sizes = [m.mean().expand_as(m) if policy == "scalar" else m for m in magnitudes]
    total = torch.stack(sizes).sum(0)
    return [torch.where(total > 0, size / total, 1.0 / count) for size in sizes]


def junction_terms(pair: Pair) -> dict[tuple[int, int], list[int]]:
    """For every part of every junction: the observed nodes whose transformed values are added up to weigh it.

    The published code weighs the skip of a block's second junction by the sum of what its first junction added, each
    transformed by itself; everywhere else by the value as it is. Stored tables are weighed raw and stand for
    themselves (a list of one negative number is not needed: they are not observed).
    """
    nodes = pair.anchor.graph.nodes
    terms: dict[tuple[int, int], list[int]] = {}
    for node in nodes:
        if node.kind is not NodeKind.JUNCTION:
            continue
        for i, r in enumerate(node.readings):
            before = nodes[r.node]
            same_block = before.kind is NodeKind.JUNCTION and before.name == node.name and r.role == "skip"
            parts = [b.node for b in before.readings if b.role in ("skip", "branch")] if same_block else [r.node]
            terms[node.index, i] = parts
    return terms


def stored_magnitude(pair: Pair, index: int) -> torch.Tensor:
    """Mean absolute value per unit of a stored table, raw."""
    from otfuse.align.pair import unit_rows

    which = pair.main_piece(index)
    assert which is not None  # a stored table has its tensor
    return unit_rows(pair.anchor, pair.anchor.graph.nodes[index].pieces[which]).double().abs().mean(1)


def affines(moments: Mapping[int, Moments], nodes: Sequence[int], transform: Transform) -> list[tuple[int, Affine]]:
    """The transform of each node's units, known from the first pass."""
    return [(index, moments[index].anchor_affine(transform)) for index in nodes]
