"""Models as sides, traced once for many tests, and copies that compute the same: permuted, or with every unit several times."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace

import numpy as np
import torch

from otfuse.align.pair import Pair
from otfuse.align.scheme import measure, set_aside, walk
from otfuse.core import recipe as recipes
from otfuse.core.alignment import Alignment
from otfuse.core.dataset import Dataset
from otfuse.core.space import Role
from otfuse.flow.match import require_match
from otfuse.flow.proof.act import act, draw
from otfuse.flow.proof.gate import change
from otfuse.fusion.apply import fused, mixed
from otfuse.fusion.sides import traced
from otfuse.io.parents import given
from otfuse.measure.probe import Side, first_batch
from otfuse.program.run import Runner
from otfuse.program.weights import Weights

UNITS = ("stream", "units", "channels")
BATCH = 16


@dataclass(frozen=True, eq=False)
class Case:
    """A traced model and unlabelled data for it."""

    side: Side
    data: Dataset

    def outputs(self, weights=None):
        return Runner(self.side.program)(self.side.weights if weights is None else weights)

    def change(self, weights):
        """Largest relative change of an output when the model has these weights."""
        return change(self.outputs(weights), self.outputs())

    def permuted(self, kinds=UNITS, seed=1):
        """A copy whose spaces of these kinds (all that are free when None) are permuted."""
        spaces = [s for s in self.side.graph.free if kinds is None or s.kind in kinds]
        assert spaces
        return replace(self.side, weights=act([draw(s, seed) for s in spaces], self.side.weights))


@dataclass(frozen=True, eq=False)
class Fused:
    """Fused tensors by name, and what was found."""

    weights: dict[str, torch.Tensor]
    alignments: list[Alignment]


def case(model, inputs, rows=40, seed=5):
    """The model traced on the first rows of data like its inputs; a last batch is not full."""
    data = Dataset(probe(model, inputs, rows, seed))
    return Case(traced(given(model, "model"), first_batch(model, data, BATCH)), data)


def fuse(anchor, sources, data, *, mix=None, scheme="otfusion", **options):
    """Fused with these options, EMD unless they say otherwise."""
    recipe = recipes.read({"scheme": scheme, "weights": mix, "otfusion": {"solver": "emd"} | options})
    pairs = [Pair(anchor, source) for source in sources]
    for pair in pairs:
        require_match(pair.anchor.graph, pair.source.graph, ("anchor", "source"))
    weights = recipe.weights_for(1 + len(pairs))
    held = [_held(side) for side in (anchor, *sources)]
    if scheme == "average":
        plain = [(name, mixed(name, held[0], held[1:], [()] * len(pairs), weights)) for name in held[0].alike]
        return Fused({name: torch.cat(list(b)).reshape(held[0].shape(name)).float() for name, b in plain}, [])
    aside = set_aside(anchor, recipe)
    value = recipe.otfusion.regulariser
    walks = [walk(p, recipe, measure(p, recipe, data), value, aside=aside, keep=True) for p in pairs]
    tensors = fused(held[0], held[1:], walks, weights)
    return Fused(tensors, [own.alignment() for own in walks])


def _held(side):
    return side.weights if isinstance(side.weights, Weights) else Weights(side.weights)


def split(narrow, wide):
    """``wide`` made to compute what ``narrow`` does: each unit stands equally often, what reads it shares."""
    tensors = dict(narrow.weights)
    for ours in narrow.graph.free:
        theirs = next(s for s in wide.graph.spaces if s.id == ours.id)
        times, rest = divmod(theirs.size, ours.size)
        assert rest == 0
        if times == 1:
            continue
        for i, member in enumerate(ours.members):
            grown = _grown(tensors[member.tensor], member, theirs.members[i], times)
            tensors[member.tensor] = grown / times if member.role is Role.CONSUMES else grown
    assert {n: tuple(t.shape) for n, t in tensors.items()} == {n: tuple(t.shape) for n, t in wide.weights.items()}
    return replace(wide, weights=tensors)


def _grown(tensor, ours, theirs, times):
    """A tensor with every unit along a member's axis ``times`` times; what is no unit stays, in order."""
    assert (ours.tensor, ours.axis) == (theirs.tensor, theirs.axis)
    length = tensor.shape[ours.axis]
    old, new = (m.positions.reshape(m.positions.shape[0], -1, m.positions.shape[2]) for m in (ours, theirs))
    copies, size, width = old.shape
    index = np.full(length + (times - 1) * old.size, -1)
    assert new.shape == (copies, size * times, width)
    index[new.reshape(-1)] = np.repeat(old, times, axis=1).reshape(-1)
    index[index < 0] = np.setdiff1d(np.arange(length), old)
    return tensor.index_select(ours.axis, torch.from_numpy(index))


def probe(model, inputs, rows=40, seed=5):
    """Unlabelled data like the example inputs, by name: what hardly differs between examples is repeated."""
    chance = torch.Generator().manual_seed(seed)

    def like(value):
        if value.is_floating_point():
            return torch.randn((rows, *value.shape[1:]), generator=chance).numpy()
        top = int(value.max()) + 1
        if top < 8:  # a mask, a kind of token
            return value[:1].repeat(rows, *[1] * (value.ndim - 1)).numpy()
        drawn = [torch.randperm(top - 4, generator=chance)[: value.shape[1]] + 4 for _ in range(rows)]
        return torch.stack(drawn).numpy()

    if isinstance(inputs, tuple):
        inputs = dict(zip(inspect.signature(model.forward).parameters, inputs, strict=False))
    return {name: like(value) for name, value in inputs.items()}
