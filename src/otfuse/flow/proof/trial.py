"""Single spaces tried on the program in float64: what no rule could tell, and what looks like rotary pairs."""

from __future__ import annotations

import functools
from math import inf
from typing import TYPE_CHECKING

from otfuse.core.space import Group
from otfuse.flow.proof.act import Moves, draw, exchange, generators
from otfuse.flow.proof.drawn import drawn
from otfuse.flow.proof.other_inputs import other_inputs
from otfuse.program.lockstep import Lockstep, Variant
from otfuse.program.run import fitting_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from torch import nn

    from otfuse.core.space import Space
    from otfuse.flow.proof.act import Element
    from otfuse.program.export import Program
    from otfuse.program.inputs import Inputs

_SAME = 1e-9  # docs/method.md, 4.2


class SpaceTrial:
    """Tries spaces on the program in float64: generators of their groups, accepted below 1e-9.

    They are tried on the example inputs and on others of their shapes, lest an example hides what a mask or a threshold
    lets through. Places where an answer is not a number (a row that a mask leaves nothing of) are not compared. Pairs
    that may be exchanged as well as turned prove nothing: nothing was turned.
    """

    def __init__(
        self,
        model: nn.Module,
        program: Program | Callable[[], Program],
        weights: Mapping[str, torch.Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        """``program``, or what makes one when something has to be tried, of any number of examples."""
        self._model, self._given, self._weights, self._seed = model, program, weights, seed

    @functools.cached_property
    def _program(self) -> Program:
        return self._given() if callable(self._given) else self._given

    def __call__(self, trials: Sequence[Sequence[Space]]) -> list[bool | None]:
        """Of each trial, spaces that are what they seem all or none, whether moving any leaves the outputs unchanged.

        None where there are no numbers (the meta device), and where the program cannot run in float64.
        """
        if not any(trials):
            return [True] * len(trials)
        if any(p.is_meta for p in self._model.parameters()):
            return [None] * len(trials)
        variants = [v for i, spaces in enumerate(trials) for space in spaces for v in self._variants(i, space)]
        try:
            with fitting_threads(self._program.inputs):
                failed = self._failed(variants)
        except (RuntimeError, NotImplementedError):
            return [None if spaces else True for spaces in trials]
        return [i not in failed for i in range(len(trials))]

    def _variants(self, trial: int, space: Space) -> list[Variant]:
        def moved(element: Element, witness: Variant | None = None) -> Variant:
            moves = Moves([element])
            return Variant(moves.names, moves, trial, witness)

        if space.group is Group.ROTARY:
            return [moved(draw(space, self._seed), moved(exchange(space)))]
        return [moved(element) for element in generators(space, self._seed)]

    def _failed(self, variants: list[Variant]) -> set[int]:
        """The trials of which a variant changes something, or shows nothing."""
        cpu = all(p.device.type == "cpu" for p in self._model.parameters())
        others = list(other_inputs(self._program.inputs, self._seed, new_numbers=cpu))
        inputs, failed = [self._program.inputs, *(whole for whole, _ in others)], set[int]()
        begun, known, later = self._follow(inputs, variants)
        parts = [part for i, (_, alone) in enumerate(others, 1) if i not in known and len(alone) > 1 for part in alone]
        if parts:
            inputs = [inputs[0], *(inputs[i] for i in sorted(known - {0})), *parts]
            begun, known, later = self._follow(inputs, [v.anew() for v in variants])
        while begun:
            failed |= {v.trial for v in begun if not _held(v, known)}
            begun, known, later = self._follow(inputs, [v for v in later if v.trial not in failed])
        return failed

    def _follow(self, inputs: list[Inputs], variants: list[Variant]) -> tuple[list[Variant], set[int], list[Variant]]:
        """The variants that were tried, the inputs on which they were, and the variants that wait for others."""
        if not variants:
            return [], set(), []
        lockstep = Lockstep(self._program, double=True)
        weights = drawn(self._model, self._program, self._seed, self._weights)
        refused, later = lockstep.follow(weights, inputs, variants)
        return [v for v in variants if v not in later], set(range(len(inputs))) - refused, later


def _held(one: Variant, known: set[int]) -> bool:
    shown = one.witness is None or any(one.told.get(i, 0.0) > _SAME for i in known)
    return bool(known) and shown and all(one.gaps.get(i, inf) < _SAME for i in known)
