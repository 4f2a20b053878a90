"""A parent of other sizes than the anchor: what its layers give, in the anchor's units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from otfuse.align import matrix
from otfuse.calibrate.layers import calibrated_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from otfuse.calibrate.forms import View
    from otfuse.calibrate.layers import Layer, Layers
    from otfuse.measure.probe import Side

    # a parent as it runs, its tensors in the anchor's units, how the outputs of its layers are seen by group and layer
    SeenLayers: TypeAlias = tuple[Side, Mapping[str, torch.Tensor], Sequence[Sequence[View]] | None]


@dataclass(frozen=True, slots=True, eq=False)
class Between:
    """A parent that runs as it is (``side``), and what aligning made of it.

    ``carried`` are its tensors in the anchor's units and sizes; ``joined`` gives the map of one axis of a tensor,
    ``[anchor positions, the parent's]`` (None: as they are).
    """

    side: Side
    carried: Mapping[str, torch.Tensor]
    joined: Callable[[str, int], matrix.Matrix | None]

    def seen(self, layers: Layers, anchor: Side) -> SeenLayers:
        """How the parent's outputs are seen at every layer of the anchor's, ``[*lead, groups, out]``; None if it has other layers.

        Rows of experts are not seen: other numbers of experts or widths choose other rows.
        """
        own = calibrated_layers(self.side.program, self.side.graph, norms=False)
        ours, theirs = ([[la.node.name for la in group] for group in found.groups] for found in (layers, own))
        if ours != theirs or any(la.form.ends is not None for group in layers.groups for la in group):
            return self.side, self.carried, None
        pairs = [list(zip(*both, strict=True)) for both in zip(layers.groups, own.groups, strict=True)]
        return self.side, self.carried, [[self._view(a, b, anchor) for a, b in group] for group in pairs]

    def _view(self, ours: Layer, theirs: Layer, anchor: Side) -> View:
        outputs, shape = theirs.form.outputs, _matrix(ours, ours.form.weight.meta["val"]).shape[:2]
        found: torch.Tensor | None = None
        for axis in range(len(anchor.graph.shapes[ours.name])):
            ours_at, theirs_at = _numbers(ours, anchor, axis), _numbers(theirs, self.side, axis)
            joined = self.joined(ours.name, axis)
            if ours_at is None or theirs_at is None or (joined is None and np.array_equal(ours_at, theirs_at)):
                continue
            square = matrix.identity(anchor.graph.shapes[ours.name][axis]) if joined is None else joined
            part = matrix.dense(matrix.take(square, ours_at, theirs_at))
            found = part if found is None else found * part
        if found is None:
            return outputs
        whole = found

        def view(value: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = outputs(value).flatten(-2) @ whole.to(value).mT
            return made.reshape(*made.shape[:-1], *shape)

        return view


def _matrix(layer: Layer, weight: torch.Tensor) -> torch.Tensor:
    return layer.form.matrix(weight)


def _numbers(layer: Layer, side: Side, axis: int) -> np.ndarray | None:
    """Of every output of a layer, which position along an axis of its stored tensor makes it; None if the axis does not tell."""
    shape, place = side.graph.shapes[layer.name], layer.weight
    along = torch.arange(shape[axis], dtype=torch.int32).reshape([-1 if d == axis else 1 for d in range(len(shape))])
    whole = along.expand(shape).contiguous()
    made = _matrix(layer, whole.as_strided(place.shape, place.stride, place.offset))
    if not bool((made == made[..., :1]).all()):
        return None
    found = made[..., 0].reshape(-1)
    return None if bool((found == found[0]).all()) and shape[axis] > 1 else found.numpy().astype(np.int64)
