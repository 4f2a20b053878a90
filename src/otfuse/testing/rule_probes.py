"""Tiny modules for the cases of rules: layers by name, an operator under test, a layer that reads its result."""

# mypy: disable-error-code="no-any-return"
# Calls of nn.Module and of torch.ops have no type; the lambdas below are examples of user code, which does not cast.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from otfuse.testing.record import Example, normal
from otfuse.testing.rules import RuleCase

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from otfuse.testing.record import Inputs

    Layers = Mapping[str, Callable[[], nn.Module | nn.Parameter]]
    Forward = Callable[[Any, Tensor], Tensor]


class Probe(nn.Module):
    """Layers and parameters by name, and a forward that is given as a function of the module and its input."""

    def __init__(self, layers: Layers, forward: Forward) -> None:
        super().__init__()
        for name, make in layers.items():
            setattr(self, name, make())
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        """Whatever the case computes."""
        return self.run(self, x)


def dense(size: int, out: int) -> Callable[[], nn.Module]:
    """A linear layer."""
    return lambda: nn.Linear(size, out)


def parameter(*shape: int) -> Callable[[], nn.Parameter]:
    """A parameter of that shape."""
    return lambda: nn.Parameter(torch.zeros(shape))


def half(*shape: int) -> Callable[[], nn.Parameter]:
    """A parameter of that shape in bfloat16."""
    return lambda: nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16))


def plain(
    operator: str, layers: Layers, forward: Forward, spaces: str, x: Callable[[], Tensor], harmless: dict[str, str]
) -> RuleCase:
    """A case from its layers, its forward and the spaces that theory frees."""

    def inputs() -> Inputs:
        return (x(),)

    return RuleCase(operator, Example(operator, lambda: Probe(layers, forward), inputs, spaces), harmless)


def through(
    operator: str, step: Forward, spaces: str = "1x6", *, leave: int = 6, width: int = 6, shape: tuple[int, ...] = (3, 7),
    more: Layers | None = None, harmless: dict[str, str] | None = None,
) -> RuleCase:  # fmt: skip
    """``enter`` (7 to ``width``), the operator, ``leave`` (``leave`` to 5)."""
    layers: Layers = {"enter": dense(7, width), "leave": dense(leave, 5), **(more or {})}
    return plain(
        operator, layers, lambda m, x: m.leave(step(m, m.enter(x))), spaces, lambda: normal(*shape), harmless or {}
    )


def along(operator: str, step: Callable[[Tensor], Tensor]) -> RuleCase:
    """The operator works along dimension 1 (four tokens), and the units along dimension 2 pass."""
    return through(operator, lambda _, h: step(h), shape=(3, 4, 7))


def elementwise(operator: str, step: Callable[[Tensor], Tensor]) -> RuleCase:
    """Six units that pass one by one."""
    return through(operator, lambda _, h: step(h))


def two_heads(operator: str, step: Callable[[Tensor], Tensor]) -> RuleCase:
    """Six units seen as two heads of three, which one matrix reads."""
    layers: Layers = {"enter": dense(7, 6), "leave": dense(3, 5)}
    return plain(operator, layers, lambda m, x: m.leave(step(m.enter(x))).sum(1), "1x2 1x3", lambda: normal(3, 7), {})


def turned(operator: str, step: Callable[[Tensor], Tensor]) -> RuleCase:
    """Units first, batch last, read by a matrix from the left."""
    layers: Layers = {"enter": dense(7, 6), "leave": parameter(5, 6)}
    return plain(operator, layers, lambda m, x: m.leave @ step(m.enter(x)), "1x6", lambda: normal(3, 7), {})


def between(operator: str, step: Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]], spaces: str = "2x6",
             harmless: dict[str, str] | None = None) -> RuleCase:  # fmt: skip
    """Two hidden values of six units that stay two: what is constant along an axis ties nobody."""
    layers: Layers = {"a": dense(7, 6), "b": dense(7, 6), "p": dense(6, 5), "q": dense(6, 5)}

    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = step(m, m.a(x), m.b(x))
        return m.p(a) + m.q(b)

    return plain(operator, layers, forward, spaces, lambda: normal(3, 7), harmless or {})


def constant(operator: str, make: Callable[[Tensor], Tensor]) -> RuleCase:
    """What ``make`` gives is added to two hidden values."""

    def step(_: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        z = make(a)
        return a + z, b + z

    return between(operator, step)


def numbered(operator: str, step: Callable[[Tensor], Tensor], leave: int = 6) -> RuleCase:
    """A table of numbers tells six units apart, so that none may move."""
    return through(
        operator,
        lambda _, h: step(h),
        "",
        leave=leave,
        harmless={"unknown": "a table of numbers is pinned, which is all that the fallback does"},
    )


def two_parts(operator: str, step: Callable[[Tensor], Any], first: int = 6) -> RuleCase:
    """Twelve units in two pieces, each read by a layer of its own."""
    layers: Layers = {"enter": dense(7, 12), "p": dense(first, 5), "q": dense(12 - first, 5)}
    spaces = "2x6" if first == 6 else f"1x{first} 1x{12 - first}"

    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = step(m.enter(x))
        return m.p(a) + m.q(b)

    return plain(operator, layers, forward, spaces, lambda: normal(3, 7), {})


def picture(operator: str, step: Callable[[Tensor], Tensor], rank: int = 2) -> RuleCase:
    """Six channels over four places a side."""
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    layers: Layers = {"enter": lambda: kind(2, 6, 1), "leave": lambda: kind(6, 5, 1)}
    shape = (2, 2, *[4] * rank)
    return plain(operator, layers, lambda m, x: m.leave(step(m.enter(x))), "1x6", lambda: normal(*shape), {})
