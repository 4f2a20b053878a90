"""One sweep: all models led on the same batches from layer to layer, each layer of the merged one solved on the way.

No value is computed twice. Between two layers a batch leaves what later operators read (:mod:`otfuse.calibrate.waiting`), so
one forward pass of every model serves all layers, and the moments of one group of layers are there at a time.
"""

from __future__ import annotations

from collections import ChainMap
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from otfuse.calibrate.experts import routed_rows
from otfuse.calibrate.moments import Sums
from otfuse.calibrate.rows import kept_rows, padding_of, paddings, plain_rows
from otfuse.calibrate.waiting import IN_MEMORY, Waiting
from otfuse.errors import DataError
from otfuse.measure.probe import probe_batches
from otfuse.program.cut import Cut, Fixed
from otfuse.solve.ridge import ridge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from otfuse.calibrate.forms import View
    from otfuse.calibrate.layers import Layer, Layers
    from otfuse.calibrate.uses import Place
    from otfuse.core.dataset import Dataset
    from otfuse.measure.observe import Part
    from otfuse.measure.probe import Side

    Group = tuple[Layer, ...]
    Progress = Callable[[int, int], None]
    Keep = Callable[[Sequence[int]], Tensor | None]


@dataclass(frozen=True, slots=True)
class Strength:
    """How a layer is solved: ``ridge`` without unit (:func:`otfuse.solve.ridge.ridge`), ``blend`` of the parents' inputs."""

    ridge: float
    blend: float = 1.0


class _Batch(NamedTuple):
    part: Part
    paddings: dict[str, Tensor]
    first: int  # the number of its first example


class Seen(NamedTuple):
    """A parent as a sweep sees it: as it runs, its tensors in the anchor's units, its share of the mean.

    ``views[group][layer]`` see what its layers give, in the anchor's units.
    """

    name: str
    side: Side
    carried: Mapping[str, Tensor]
    views: Sequence[Sequence[View]]
    share: float


class Sweeper:
    """Sweeps over the layers of models that correspond, anchor first; ``memory`` bounds the bytes that wait in memory."""

    def __init__(self, parents: Sequence[Seen], layers: Layers, memory: int = IN_MEMORY) -> None:
        self._parents, self._layers, self._memory = parents, layers, memory
        groups = [[node.name for layer in group for node in layer.nodes] for group in layers.groups]
        kept = [[n.name for n in group[0].routing] for group in layers.groups]
        sides = [parent.side for parent in parents]
        self._cuts = [Cut(side.program, groups, kept) for side in (sides[0], *sides)]
        self._last: dict[Place, int] = {la.weight: i for i, group in enumerate(layers.groups) for la in group}

    def __call__(
        self, merged: Mapping[str, Tensor], data: Dataset, strength: Strength, progress: Progress | None = None
    ) -> dict[str, Tensor]:
        """Solved tensors by first stored name, from those of ``merged``, which is not changed."""
        solved: dict[str, Tensor] = {}
        weights = ChainMap(solved, merged)  # type: ignore[arg-type]  # only the first is written into
        shared: dict[Place, Sums] = {}  # of the present group, and of matrices that are used again
        batches: list[_Batch] = []
        with Waiting(self._memory) as waiting:
            for at, group in enumerate(self._layers.groups):
                if progress is not None:
                    progress(at, len(self._layers.groups))
                fixed = self._fixed(weights, [parent.side.weights for parent in self._parents], self._cuts)
                batches = batches or self._begin(data, fixed, waiting)
                place = group[0].weight
                if place not in shared:
                    shared[place] = _sums(group, fixed[0].device)
                for b, batch in enumerate(batches):
                    self._advance(at, b, batch, fixed, waiting, shared[place])
                if self._last[place] == at:  # a matrix that is used again is solved after its last use
                    self._solve(group, shared.pop(place), weights, solved, strength)
        if progress is not None:
            progress(len(self._layers.groups), len(self._layers.groups))
        return solved

    def _fixed(
        self, weights: Mapping[str, Tensor], parents: Sequence[Mapping[str, Tensor]], cuts: Sequence[Cut]
    ) -> list[Fixed]:
        device = weights[self._layers.groups[0][0].name].device
        return [Fixed(cut, held, device) for cut, held in zip(cuts, (weights, *parents), strict=True)]

    def _begin(self, data: Dataset, fixed: Sequence[Fixed], waiting: Waiting) -> list[_Batch]:
        batches = list[_Batch]()
        for part, inputs in probe_batches(self._parents[0].side.program, data):
            for m, (cut, own) in enumerate(zip(self._cuts, fixed, strict=True)):
                waiting.put((m, len(batches)), cut.begin(inputs, own))
            batches.append(_Batch(part, paddings(inputs), len(batches) * part.size))
        return batches

    def _advance(self, at: int, b: int, batch: _Batch, fixed: Sequence[Fixed], waiting: Waiting, sums: Sums) -> None:
        """Lead every model on one batch through group ``at`` (the merged one up to it), and add up its rows."""
        tables = []
        for m, (cut, own) in enumerate(zip(self._cuts, fixed, strict=True)):
            values = waiting.take((m, b))
            if m == 0 and at:
                cut.group(at - 1, values, own)
            cut.stretch(at, values, own)
            if m:
                cut.group(at, values, own)
            tables.append(values)
        self._add(at, tables, batch, sums)
        if at + 1 < len(self._layers.groups):  # nothing is read behind the last, whose outputs may be a vocabulary wide
            for m, values in enumerate(tables):
                waiting.put((m, b), values)

    def _add(self, at: int, tables: Sequence[Mapping[str, Tensor]], batch: _Batch, sums: Sums) -> None:
        group = self._layers.groups[at]
        padding = padding_of(group[0].made_of, batch.paddings)

        def keep(lead: Sequence[int]) -> Tensor | None:
            return kept_rows(lead, batch.part, group[0], padding)

        for x, targets, groups in self._rows(at, tables, keep, range(len(self._parents))):
            if not sums.add(x, targets, groups):
                raise DataError(self._not_finite(at, tables, keep, batch))

    def _rows(
        self, at: int, tables: Sequence[Mapping[str, Tensor]], keep: Keep, numbers: Sequence[int]
    ) -> Iterator[tuple[Tensor, list[Tensor], slice]]:
        group, chosen = self._layers.groups[at], [tables[0], *(tables[m + 1] for m in numbers)]
        own = [self._parents[m] for m in numbers]
        mix = [parent.share for parent in own] if len(own) > 1 else [1.0]
        if group[0].form.ends is not None:
            return routed_rows(group, chosen, mix, keep)
        return plain_rows(group, chosen, mix, keep, [parent.views[at] for parent in own])

    def _not_finite(self, at: int, tables: Sequence[Mapping[str, Tensor]], keep: Keep, batch: _Batch) -> str:
        group = self._layers.groups[at]
        alone = [self._rows(at, tables, keep, [m]) for m in range(len(self._parents))]
        bad = [any(not t.isfinite().all() for _, targets, _ in found for t in targets) for found in alone]
        name = next((own.name for own, odd in zip(self._parents, bad, strict=True) if odd), "the merged model")
        return (
            f"{name} gives no finite numbers at {group[0].name} on one of the examples {batch.first} to "
            f"{batch.first + batch.part.real - 1}; leave that example out, or look at the model"
        )

    def _solve(
        self, group: Group, sums: Sums, weights: Mapping[str, Tensor], solved: dict[str, Tensor], strength: Strength
    ) -> None:
        """Solve every layer of a group, and write it into copies of the stored tensors."""
        for place in (p for layer in group for p in (layer.weight, layer.bias) if p is not None):
            if place.tensor not in solved:
                solved[place.tensor] = weights[place.tensor].clone()
        fixed = self._fixed(weights, [parent.carried for parent in self._parents], [self._cuts[0]] * len(self._cuts))
        for i, layer in enumerate(group):
            (matrix, offset), *others = [_seen(layer, own) for own in (fixed if strength.blend < 1 else fixed[:1])]
            weight, bias = ridge(
                sums.products(i),
                matrix.add_(layer.form.shift),
                offset,
                strength=strength.ridge,
                blend=strength.blend,
                elsewhere=_mean(others, [parent.share for parent in self._parents], layer.form.shift)
                if others
                else None,
            )
            matrix.copy_(weight).sub_(layer.form.shift)
            if offset is not None and bias is not None:
                offset.copy_(bias)


def _sums(group: Group, device: torch.device) -> Sums:
    shapes = [layer.form.matrix(layer.form.weight.meta["val"]).shape for layer in group]
    return Sums(shapes[0][0], shapes[0][2], [shape[1] for shape in shapes], device)


def _seen(layer: Layer, fixed: Fixed) -> tuple[Tensor, Tensor | None]:
    """A layer's matrix and offset among the weights of one model."""
    form = layer.form
    return form.matrix(fixed[form.weight.name]), None if form.bias is None else form.offset(fixed[form.bias.name])


def _mean(
    found: Sequence[tuple[Tensor, Tensor | None]], mix: Sequence[float], shift: float
) -> tuple[Tensor, Tensor | None]:
    matrix = torch.stack([w * (m.double() + shift) for w, (m, _) in zip(mix, found, strict=True)]).sum(0)
    offsets = [w * o.double() for w, (_, o) in zip(mix, found, strict=True) if o is not None]
    return matrix, torch.stack(offsets).sum(0) if offsets else None
