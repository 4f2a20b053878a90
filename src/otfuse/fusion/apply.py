"""Carrying a source's tensors into the anchor's basis, and averaging: block by block, so that a large table costs a block."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch

from otfuse.align.matrix import along
from otfuse.errors import MatchError
from otfuse.program.weights import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from otfuse.align.scheme import Walk
    from otfuse.core.alignment import AxisMap, Carry
    from otfuse.program.weights import Weights


def complete(
    walks: Sequence[Walk], tell: Callable[[int, int], None] = lambda _done, _total: None
) -> Iterator[tuple[str, list[tuple[Carry, ...]]]]:
    """Every tensor that is mixed, as soon as all sources know its maps, with the carries of each source."""
    for index in range(walks[0].steps):
        found = [own.step(index) for own in walks]
        yield from ((name, [carries[name] for carries in found]) for name in found[0])
        tell(index + 1, walks[0].steps)
    rest = [own.rest() for own in walks]
    yield from ((name, [carries[name] for carries in rest]) for name in rest[0])


def fused(
    anchor: Weights, sources: Sequence[Weights], walks: Sequence[Walk], weights: Sequence[float]
) -> dict[str, torch.Tensor]:
    """All fused tensors at once, by first name, in the types of the anchor; those set aside are the anchor's own."""
    table = dict[str, torch.Tensor]()
    for name, carries in complete(walks):
        whole = torch.cat(list(mixed(name, anchor, sources, carries, weights)))
        table[name] = whole.reshape(anchor.shape(name)).to(anchor.dtype(name))
    return {name: table[name] if name in table else anchor[name] for name in anchor.alike}


def mixed(
    name: str, anchor: Weights, sources: Sequence[Weights], carries: Sequence[Sequence[Carry]], weights: Sequence[float]
) -> Iterator[torch.Tensor]:
    """``weights[0] * anchor + sum_k weights[k] * carried source k``, flat, in blocks in the order of the anchor's values.

    Sums are in float64, of tensors stored in half precision in float32. Raises MatchError for a tensor without a carry
    whose shapes differ.
    """
    shape = anchor.shape(name)
    half = all(w.stored(name).itemsize <= 2 for w in (anchor, *sources))
    kind, size = torch.float32 if half else torch.float64, _block(shape, carries)
    parts = [anchor.blocks(name, size)]
    parts += [carried(name, source, own, shape, size) for source, own in zip(sources, carries, strict=True)]
    for blocks in zip(*parts, strict=True):
        total = blocks[0].to(kind).mul_(weights[0]) if blocks[0].dtype != kind else blocks[0] * weights[0]
        for block, weight in zip(blocks[1:], weights[1:], strict=True):
            total.add_(block.to(kind).to(total.device), alpha=weight)
        yield total


def carried(
    name: str, source: Weights, carries: Sequence[Carry], shape: torch.Size, size: int
) -> Iterator[torch.Tensor]:
    """A source's tensor in the anchor's basis, flat, ``size`` values at a time.

    Maps are applied in the tensor's own precision, float32 at least.
    """
    if not carries:
        if source.shape(name) != shape:
            raise MatchError(
                f"{name}: has shape {list(shape)} in the anchor and {list(source.shape(name))} in the source and no map "
                "joins them; use a recipe that aligns units, or models of equal sizes"
            )
        yield from source.blocks(name, size)
    elif _by_rows(carries):
        width, theirs = prod(shape[1:]), source.shape(name)[1:]
        for block in source.blocks(name, size // width * prod(theirs)):
            rows = block.reshape(-1, *theirs)
            yield _carried(rows, carries, (len(rows), *shape[1:])).reshape(-1)
    else:
        yield from _carried(source[name], carries, tuple(shape)).reshape(-1).split(size)


def _block(shape: torch.Size, carries: Sequence[Sequence[Carry]]) -> int:
    """Values per block: whole rows where a source is carried row by row."""
    if not any(carries) or not shape:
        return BLOCK
    width = max(prod(shape[1:]), 1)
    return max(BLOCK // width, 1) * width


def _by_rows(carries: Sequence[Carry]) -> bool:
    """Whether no map touches the first axis, so that rows can be carried one after another."""
    return all(axis_map.axis != 0 for carry in carries for axis_map in carry.axes)


def _carried(tensor: torch.Tensor, carries: Sequence[Carry], shape: tuple[int, ...]) -> torch.Tensor:
    tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    whole = len(carries) == 1 and all(len(m.anchor) == shape[m.axis] for m in carries[0].axes)
    if whole and all(_in_order(axis_map) for axis_map in carries[0].axes):
        return _mapped(tensor, carries[0])
    same = tensor.shape == torch.Size(shape)  # what no map covers is taken where it is
    out = tensor.clone() if same else torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
    for carry in carries:
        places = [torch.arange(n) for n in shape]
        for axis_map in carry.axes:
            places[axis_map.axis] = torch.from_numpy(axis_map.anchor)
        _place(out, _mapped(tensor, carry), places)
    return out


def _in_order(axis_map: AxisMap) -> bool:
    return bool((axis_map.anchor == np.arange(len(axis_map.anchor))).all())


def _mapped(tensor: torch.Tensor, carry: Carry) -> torch.Tensor:
    for axis_map in carry.axes:
        chosen, n = axis_map.source, tensor.shape[axis_map.axis]
        if len(chosen) != n or (chosen != np.arange(n)).any():
            tensor = tensor.index_select(axis_map.axis, torch.from_numpy(chosen).to(tensor.device))
        tensor = along(axis_map.matrix, tensor, axis_map.axis)
    return tensor


def _place(out: torch.Tensor, part: torch.Tensor, places: list[torch.Tensor]) -> None:
    """Write a block; an axis that the block covers in order needs no index."""
    partial = [d for d, index in enumerate(places) if not torch.equal(index, torch.arange(out.shape[d]))]
    if not partial:
        out.copy_(part)
    elif len(partial) == 1:
        out.index_copy_(partial[0], places[partial[0]].to(out.device), part)
    else:
        out[torch.meshgrid(*places, indexing="ij")] = part
