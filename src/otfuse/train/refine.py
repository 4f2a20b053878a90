"""Refining: gradient steps on the maps alone. No weight is trained.

The fused model is the mean of the anchor and of the sources, each carried by elements of its exact groups; these elements are
learned, all sources together, so that the mean predicts what the parents predict together on unlabelled inputs. As long as
no map is soft, every carried source computes what it computed before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import nn
from torch.func import functional_call

from otfuse.errors import UsageError
from otfuse.program.state import copied
from otfuse.train.distil import distil
from otfuse.train.elements import Elements
from otfuse.train.worker import fill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from otfuse.core.symmetry import Symmetry
    from otfuse.train.distil import Course, Distilled
    from otfuse.train.lesson import Lesson

RATES = (10**-2, 10**-1.7)  # what weights take is far too little for maps


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """What is averaged: the canonical tensors of the anchor and of each source in its basis, and the groups that are left."""

    models: tuple[Mapping[str, Tensor], ...]
    symmetries: tuple[Symmetry, ...]
    mix: tuple[float, ...]


class Refined(NamedTuple):
    """The mean by first stored name, every model as it was moved (anchor first), and how they came about."""

    weights: dict[str, Tensor]
    models: list[Mapping[str, Tensor]]
    made: Distilled


class Averaged(nn.Module):
    """A module of the anchor's class whose weights are the mean, as a function of the elements that are learned."""

    def __init__(self, model: nn.Module, carried: Carried, *, soft: bool) -> None:
        super().__init__()
        self._held = (model, carried)  # not its own: not trained, and copied only where it must move
        kinds = [tensor.dtype for tensor in carried.models[0].values() if tensor.is_floating_point()]
        kind = reduce(torch.promote_types, kinds, torch.float32)  # the identity of half precision cannot move
        elements = partial(Elements, carried.symmetries, soft=soft, dtype=kind)
        self.sources = nn.ModuleList(elements() for _ in carried.models[1:])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002  # torch's own
        """To another device or type: what is held goes there as a copy, for the model is somebody's."""
        model, carried = self._held
        models = tuple({name: fn(tensor) for name, tensor in own.items()} for own in carried.models)
        if any(new[name] is not own[name] for new, own in zip(models, carried.models, strict=True) for name in own):
            self._held = (copied(model, ())._apply(fn), replace(carried, models=models))  # noqa: SLF001
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def models(self) -> Iterator[Mapping[str, Tensor]]:
        """The models that are averaged, as they are moved by now, anchor first, differentiable."""
        anchor, *others = self._held[1].models
        yield anchor
        for own, model in zip(self.sources, others, strict=True):
            assert isinstance(own, Elements)  # made above
            yield _moved(model, own.elements())

    def weights(self) -> dict[str, Tensor]:
        """Their mean by first stored name, differentiable."""
        found: dict[str, Tensor] = {}
        for model, share in zip(self.models(), self._held[1].mix, strict=True):
            found = {n: found[n] + share * model[n] if found else share * model[n] for n in self._held[1].models[0]}
        return found

    def forward(self, *args: Any, **inputs: Any) -> Any:
        """What the model of these weights gives."""
        return functional_call(self._held[0], self.weights(), args, inputs)


def refine(
    model: nn.Module,
    carried: Carried,
    lesson: Lesson,
    learned: NDArray[Any],
    held: NDArray[Any],
    course: Course,
    *,
    soft: bool = False,
    **running: Any,
) -> Refined:
    """Learns the elements; ``running`` as :func:`otfuse.train.distil.distil`.

    UsageError if no space of the model has a group to move in.
    """
    averaged = Averaged(model, carried, soft=soft)
    if not any(isinstance(own, Elements) and own.learns for own in averaged.sources):
        raise UsageError(
            "refined: no space of this model has a group beyond permutations, so no map can be refined; use refined.soft: units, "
            "or recipe distilled"
        )
    start = {name: p.detach().clone() for name, p in averaged.named_parameters()}
    made = distil(averaged, start, lesson, learned, held, course, fresh=False, **running)
    fill(averaged, made.weights)
    with torch.no_grad():
        return Refined(averaged.weights(), list(averaged.models()), made)


def _moved(model: Mapping[str, Tensor], elements: Sequence[Any]) -> dict[str, Tensor]:
    found = dict(model)
    for element in elements:
        for name in {slot.tensor for slot in element.symmetry.slots} & found.keys():
            found[name] = element(name, found[name])
    return found
