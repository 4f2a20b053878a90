"""Neuron transplantation (arXiv 2502.06849) as a control: the units of all models side by side, pruned back by size.

Every space of interchangeable units takes the largest of all models' units; a weight between units of two models is zero, and
what belongs to no space (classes, tokens, positions) is averaged. Units inside a head stay with their head.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

import otfuse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from otfuse.core.graph import FlowGraph
    from otfuse.core.space import Space

OUTER = ("heads", "queries", "experts")  # their units hold those of other spaces


def transplanted(models: Sequence[nn.Module], graph: FlowGraph) -> nn.Module:
    """A module of the first one's class; ``graph`` is that of the first, all are of one size."""
    states = [dict(model.state_dict()) for model in models]
    origins: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    spaces = sorted(graph.free, key=lambda space: space.kind not in OUTER)
    for space in spaces:
        taken(space, states, origins)
    made = copy.deepcopy(models[0])
    fused = {name: joined(name, states, origins) for name in states[0]}
    made.load_state_dict(fused)
    return made


def taken(
    space: Space, states: Sequence[dict[str, Tensor]], origins: dict[tuple[str, int], tuple[Tensor, Tensor]]
) -> None:
    """Which model and which of its units every unit of a space comes from, noted for the places of its members."""
    known = [(m.tensor, m.axis) in origins for m in space.members]
    if any(m.batch_axis is not None for m in space.members) or all(known):
        return
    sizes = torch.stack([unit_sizes(space, state) for state in states], 1)  # [copies, models, units]
    copies, _, units = sizes.shape
    best = sizes.reshape(copies, -1).topk(units, dim=1).indices.sort(dim=1).values
    model, unit = best // units, best % units
    for member in space.members:
        length = states[0][member.tensor].shape[member.axis]
        start = (torch.full((length,), -1), torch.arange(length))
        origin, index = origins.setdefault((member.tensor, member.axis), start)
        places = torch.from_numpy(member.positions)
        for copy_ in range(copies):
            if (origin[places[copy_]] >= 0).any():  # inside a head that was chosen already
                continue
            origin[places[copy_]] = model[copy_][:, None].expand_as(places[copy_])
            index[places[copy_]] = places[copy_][unit[copy_]]


def unit_sizes(space: Space, state: dict[str, Tensor]) -> Tensor:
    """``[copies, units]``: the sum of squares of all weights that belong to a unit."""
    total = torch.zeros(space.copies, space.size)
    for member in space.members:
        squares = state[member.tensor].float().square().movedim(member.axis, 0)
        total += squares.reshape(len(squares), -1).sum(1)[torch.from_numpy(member.positions)].sum(-1)
    return total


def joined(
    name: str, states: Sequence[dict[str, Tensor]], origins: dict[tuple[str, int], tuple[Tensor, Tensor]]
) -> Tensor:
    """One tensor of the units that were chosen."""
    parts = [state[name] for state in states]
    if not parts[0].is_floating_point():
        return parts[0]
    total, count = torch.zeros_like(parts[0]), torch.zeros_like(parts[0])
    for k, part in enumerate(parts):
        ours = torch.ones_like(part)
        for axis in range(part.ndim):
            if (name, axis) in origins:
                origin, index = origins[name, axis]
                part = part.index_select(axis, index)
                here = ((origin == k) | (origin < 0)).to(part.dtype)
                ours = ours * here.reshape([-1 if d == axis else 1 for d in range(part.ndim)])
        total, count = total + part * ours, count + ours
    return total / count.clamp_min(1)


def fuse(models: Sequence[nn.Module], inputs: dict[str, Tensor]) -> nn.Module:
    """Neuron transplantation of trained models; ``inputs`` are a few examples to trace with."""
    return transplanted(models, otfuse.trace(models[0], inputs))
