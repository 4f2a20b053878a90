"""Carrying a source's tensors into the anchor's basis, and averaging."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from otfuse.errors import MatchError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otfuse.core.alignment import Alignment, AxisMap, Carry


def fused(
    anchor: Mapping[str, torch.Tensor],
    sources: Sequence[Mapping[str, torch.Tensor]],
    alignments: Sequence[Alignment],
    weights: Sequence[float],
) -> dict[str, torch.Tensor]:
    """``weights[0] * anchor + sum_k weights[k] * carried source k``, tensor by tensor, in the anchor's shapes and dtype.

    Tensors that an alignment keeps stay the anchor's. Raises MatchError for a tensor without a carry whose shapes differ.
    """
    tables = [_by_tensor(alignment) for alignment in alignments]
    kept = frozenset().union(*(a.kept for a in alignments))
    result = {}
    for name, tensor in anchor.items():
        if name in kept:
            result[name] = tensor.clone()
            continue
        total = weights[0] * tensor.double()
        for source, table, weight in zip(sources, tables, weights[1:], strict=True):
            total += weight * carried(source[name], table.get(name, ()), tensor.shape, name).to(total.device)
        result[name] = total.to(tensor.dtype)
    return result


def carried(tensor: torch.Tensor, carries: Sequence[Carry], shape: torch.Size, name: str) -> torch.Tensor:
    """A source's tensor in the anchor's basis: maps are applied in the tensor's own precision, float32 at least."""
    if not carries:
        if tensor.shape != shape:
            raise MatchError(
                f"{name}: has shape {list(shape)} in the anchor and {list(tensor.shape)} in the source and no map joins "
                "them; use a recipe that aligns units, or models of equal sizes"
            )
        return tensor.double()
    tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    out = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
    for carry in carries:
        part, places = tensor, [torch.arange(n) for n in shape]
        for axis_map in carry.axes:
            part = _along(part, axis_map)
            places[axis_map.axis] = torch.from_numpy(axis_map.anchor)
        _place(out, part, places)
    return out


def _place(out: torch.Tensor, part: torch.Tensor, places: list[torch.Tensor]) -> None:
    """Write a block; an axis that the block covers in order needs no index."""
    partial = [d for d, index in enumerate(places) if not torch.equal(index, torch.arange(out.shape[d]))]
    if not partial:
        out.copy_(part)
    elif len(partial) == 1:
        out.index_copy_(partial[0], places[partial[0]].to(out.device), part)
    else:
        out[torch.meshgrid(*places, indexing="ij")] = part


def _along(tensor: torch.Tensor, axis_map: AxisMap) -> torch.Tensor:
    index = torch.from_numpy(axis_map.source).to(tensor.device)
    matrix = axis_map.matrix.to(tensor)
    chosen = tensor.index_select(axis_map.axis, index)
    mapped: torch.Tensor = torch.tensordot(matrix, chosen, dims=([1], [axis_map.axis]))
    return mapped.movedim(0, axis_map.axis)


def _by_tensor(alignment: Alignment) -> dict[str, list[Carry]]:
    table: dict[str, list[Carry]] = {}
    for carry in alignment.carries:
        table.setdefault(carry.tensor, []).append(carry)
    return table
