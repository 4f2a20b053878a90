"""A model that computes the same as another from other weights: random members of the groups of its spaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otfuse.flow.groups.element import element
from otfuse.flow.groups.find import EqualWeights, symmetries
from otfuse.fusion.into import IntoModule
from otfuse.fusion.sides import traced

if TYPE_CHECKING:
    from torch import nn

    from otfuse.fusion.sides import Parent
    from otfuse.program.inputs import Inputs


def write_equal(given: Any, parent: Parent, inputs: Inputs | None, seed: int, groups: str) -> nn.Module:
    """A copy of the module given (or the module made for a checkpoint) whose weights were moved tensor by tensor."""
    side = traced(parent, inputs)
    found = symmetries(side, groups=groups)
    drawn = [element(symmetry, seed) for symmetry in found.found]
    equal = EqualWeights(side.weights, found, side.graph.ties, drawn)
    into = IntoModule(given, parent, lambda: side.program.caches)
    for name in equal:
        into(name, [equal[name] if name in equal.moved else side.weights[name]])
    types = {parent.weights.stored(name) for name in equal}
    return into.module.to(types.pop()) if isinstance(given, str) and len(types) == 1 else into.module
