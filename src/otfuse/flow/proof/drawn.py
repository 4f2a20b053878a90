"""Stored tensors of a program by first name: the real ones, and random ones, each made when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING

import torch

from otfuse.flow.proof.act import number

if TYPE_CHECKING:
    from torch import nn

    from otfuse.program.export import Program

_BLOCK = 1 << 18


class Drawn(Mapping[str, torch.Tensor]):
    """Stored tensors in float64 with every value drawn anew: defaults such as ones and zeros hide mistakes.

    The same name and seed give the same tensor at every access and in every process. Gains keep their mean near one;
    buffers that are positive (running variances) are drawn positive: of these alone the ``tensors`` are looked at.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        shapes: Mapping[str, tuple[int, ...]],
        parameters: set[str],
        seed: int,
        device: torch.device,
    ) -> None:
        self._tensors, self._shapes, self._parameters = tensors, shapes, parameters
        self._seed, self._device = seed, device

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        if name in self._parameters and len(shape) > 1:
            fan = shape[1] if len(shape) == 3 else prod(shape[1:])  # a matrix per expert
            return self._noise(name, max(fan, 1) ** -0.5)
        tensor = self._tensors[name]
        if name not in self._parameters:
            positive = bool((tensor > 0).all())
            return self._noise(name, 1.0).abs_().add_(0.5) if positive else self._noise(name, 0.3)
        offset = 1.0 if tensor.numel() and abs(float(tensor.double().mean())) > 0.5 else 0.0
        return self._noise(name, 0.3).add_(offset)

    def _noise(self, name: str, size: float) -> torch.Tensor:
        """Drawn in single precision, which is three times as fast, and in blocks that stay in the processor's memory."""
        source = torch.Generator().manual_seed(number(self._seed, "weights", name))
        drawn = torch.empty(self._shapes[name], dtype=torch.float64)
        for block in drawn.view(-1).split(_BLOCK):
            block.copy_(torch.randn(len(block), generator=source).mul_(size))
        return drawn.to(self._device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class _Firsts(Mapping[str, torch.Tensor]):
    """The stored tensors by first name alone: those given (each read when it is asked for), else the model's own."""

    def __init__(self, held: Mapping[str, torch.Tensor], program: Program) -> None:
        self._held, self._names = held, [name for name, first in program.ties.items() if name == first]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._held[name].detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def real(
    model: nn.Module, program: Program, weights: Mapping[str, torch.Tensor] | None = None
) -> Mapping[str, torch.Tensor]:
    """The stored tensors by first name: those given, else the model's own."""
    return _Firsts(
        dict(model.named_parameters()) | dict(model.named_buffers()) if weights is None else weights, program
    )


def drawn(model: nn.Module, program: Program, seed: int, weights: Mapping[str, torch.Tensor] | None = None) -> Drawn:
    """The stored tensors by first name, every value drawn anew."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    named = {name for name, _ in model.named_parameters()}
    return Drawn(real(model, program, weights), program.shapes, named, seed, device)


def redrawn(program: Program, weights: Mapping[str, torch.Tensor], seed: int) -> Drawn:
    """The stored tensors by first name, every value drawn anew, of a program whose module is not at hand."""
    firsts = _Firsts(weights, program)
    smallest = min(firsts, key=lambda name: prod(program.shapes[name]))
    return Drawn(firsts, program.shapes, set(program.shapes) - program.buffers, seed, firsts[smallest].device)
