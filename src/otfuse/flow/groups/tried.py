"""Variants of the stored tensors tried beside the program, in float64: which leave its outputs where they are."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from otfuse.flow.proof.other_inputs import other_inputs
from otfuse.program.lockstep import Lockstep, Variant
from otfuse.program.run import fitting_threads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from otfuse.flow.groups.element import Element
    from otfuse.program.export import Program

EXACT = 1e-9  # relative change of the outputs (docs/method.md, 4.2)
PATIENCE = 2  # layers that a difference may reach behind the last one that reads what was moved


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """A program with the tensors that it is tried on: all variants advance together, each as far as it makes a difference.

    They are tried on the example inputs, and on others of their shapes where the program takes them.
    """

    program: Program
    weights: Mapping[str, torch.Tensor]
    seed: int = 0

    def gaps(self, variants: Sequence[Variant]) -> list[float]:
        """The largest relative change of the outputs that each makes; infinite where it was not followed to the end.

        Raises what the program raises (RuntimeError, NotImplementedError) where it does not run in float64.
        """
        if not variants:
            return []
        others = other_inputs(self.program.inputs, self.seed, new_numbers=False)
        inputs = [self.program.inputs, *(whole for whole, _ in list(others)[:1])]
        with fitting_threads(self.program.inputs):
            refused, _ = Lockstep(self.program, double=True).follow(self.weights, inputs, variants)
        taken = set(range(len(inputs))) - refused
        return [max((v.gaps.get(i, inf) for i in taken), default=inf) for v in variants]


def moved(elements: Sequence[Element], trial: int, *, whole: bool = False) -> Variant:
    """Elements of symmetries acting one after another. Unless ``whole``, it is given up soon after their last reader."""
    by_name: dict[str, list[Element]] = {}
    for element in elements:
        for name in {slot.tensor for slot in element.symmetry.slots}:
            by_name.setdefault(name, []).append(element)

    def move(name: str, tensor: torch.Tensor) -> torch.Tensor:
        for element in by_name[name]:
            tensor = element(name, tensor)
        return tensor

    return Variant(frozenset(by_name), move, trial, patience=None if whole else PATIENCE, late=True)
