"""Which rows of a layer count: those of real examples, at places that are no padding and that predictions read."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from otfuse.calibrate.forms import View
    from otfuse.calibrate.layers import Layer
    from otfuse.core.graph import Observation
    from otfuse.measure.observe import Part
    from otfuse.program.inputs import Inputs

_MASK = "attention_mask"


def paddings(inputs: Inputs) -> dict[str, Tensor]:
    """``[example, place]``, true where there is something, by the name of the ids that it tells of; none where all is."""
    named = inputs.items() if not isinstance(inputs, tuple) else ()
    return {
        name.removesuffix(_MASK) + "input_ids": value != 0
        for name, value in named
        if name.endswith(_MASK) and isinstance(value, torch.Tensor) and value.ndim == 2 and bool((value == 0).any())
    }


def plain_rows(
    group: Sequence[Layer],
    tables: Sequence[Mapping[str, Tensor]],
    mix: Sequence[float],
    keep: Callable[[Sequence[int]], Tensor | None],
    views: Sequence[Sequence[View]],
) -> Iterator[tuple[Tensor, list[Tensor], slice]]:
    """What the merged model (the first of ``tables``) reads, ``[groups, rows, in]``, and the mean of what parents give.

    ``views[parent][layer]`` see a parent's outputs in the anchor's units.
    """

    def rows(value: Tensor, kept: Tensor | None) -> Tensor:
        value = value.flatten(0, -3)  # [rows, groups, units]
        return (value if kept is None else value[kept.to(value.device)]).transpose(0, 1)

    form = group[0].form
    x = form.inputs(tables[0][form.x.name])
    kept = keep(x.shape[:-2])
    targets = []
    for i, layer in enumerate(group):
        given = [rows(own[i](table[layer.node.name]), kept) for own, table in zip(views, tables[1:], strict=True)]
        mean = given[0] * mix[0]
        for weight, other in zip(mix[1:], given[1:], strict=True):
            mean = mean.add(other, alpha=weight)
        targets.append(mean)
    yield rows(x, kept), targets, slice(None)


def kept_rows(lead: Sequence[int], part: Part, layer: Layer, padding: Tensor | None) -> Tensor | None:
    """Which of the rows ``lead`` (flattened) of what a layer reads count; None for all.

    ``lead`` are the sizes of the dimensions that hold rows; examples lie along the first, each perhaps several times, else
    along one as long as the batch.
    """
    per = prod(lead) // part.size
    first = bool(lead) and lead[0] % part.size == 0
    if not first:  # places before examples: only what fills the batch up can be told
        dim = next((d for d, n in enumerate(lead) if n == part.size), None)
        if dim is None or part.real == part.size:
            return None
        real = (torch.arange(part.size) < part.real).reshape([-1 if d == dim else 1 for d in range(len(lead))])
        return real.expand(tuple(lead)).reshape(-1)
    keep = (torch.arange(part.size) < part.real)[:, None].expand(part.size, per)
    read = _read(layer.observation, layer.observed, per)
    if read is not None:
        keep = keep & read
    if padding is not None and per % padding.shape[1] == 0:
        keep = keep & padding.repeat_interleave(per // padding.shape[1], 1)
    return None if bool(keep.all()) else keep.reshape(-1)


def _read(seen: Observation | None, value: Sequence[int], per: int) -> Tensor | None:
    """What predictions read of the rows of one example, if these are the places of the observed value."""
    if seen is None or seen.read is None:
        return None
    read = torch.from_numpy(seen.read.copy())
    if read.numel() == per:
        return read.reshape(-1)
    beside = [n for d, n in enumerate(value) if d in seen.dims[:-1]]  # rows of one place (heads that share a matrix)
    if beside and len(value) == read.ndim + 1 + len(seen.dims) and read.numel() * prod(beside) == per:
        places = [d for d in range(1, len(value)) if d not in seen.dims]
        order = sorted([*places, *seen.dims[:-1]])
        wide = read.reshape([value[d] if d in places else 1 for d in order])
        return wide.expand([value[d] for d in order]).reshape(-1)
    return None


def padding_of(depends: frozenset[str], paddings: Mapping[str, Tensor]) -> Tensor | None:
    """The padding of the ids that a value is made of: of a decoder's, if it depends on these."""
    names = [name for name in paddings if name in depends]
    decoder = next((name for name in depends if name.startswith("decoder_")), None)
    return paddings.get(decoder) if decoder is not None else next((paddings[name] for name in names), None)
