"""Small modules made to mislead: equal sizes, reused weights, units mixed, reordered or compared by number."""

# mypy: disable-error-code="no-any-return"
# A call of an nn.Module has no type; the forwards below are examples of user code, which does not cast.

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from otfuse.testing.record import Example, normal

if TYPE_CHECKING:
    from collections.abc import Callable


class HeadGram(nn.Module):
    """Attention across heads: units of head i meet units of head j, so all heads need one common map."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(7, 24), nn.Linear(7, 24), nn.Linear(7, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, 7]`` to ``[batch, 5]``."""
        q, k, v = (f(x).view(-1, 4, 6) for f in (self.q, self.k, self.v))
        return self.o((torch.softmax(q @ k.transpose(1, 2), -1) @ v).flatten(1))


class Outer(nn.Module):
    """Outer product of two hidden values, the second also with itself, flattened into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(7, 4), nn.Linear(7, 6)
        self.o, self.p = nn.Linear(24, 5), nn.Linear(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, 7]`` to ``[batch, 5]``."""
        a, b = torch.tanh(self.a(x)), torch.tanh(self.b(x))
        mixed = torch.einsum("bi,bj->bij", a, b).flatten(1)
        return self.o(mixed) + self.p((b[:, :, None] * b[:, None, :]).flatten(1))


class TransposedTie(nn.Module):
    """One square weight used as it is and transposed, and a decoder that is the encoder's transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.square, self.leave = nn.Linear(7, 9), nn.Linear(9, 9, bias=False), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, 7]`` to ``[batch, 5]``."""
        x = torch.relu(self.enter(x))
        x = torch.relu(self.square(x)) @ self.square.weight
        return self.leave(torch.tanh(x @ self.enter.weight))


class Recurrent(nn.Module):
    """A recurrent weight, written as a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.turn, self.leave = nn.Linear(7, 9), nn.Linear(9, 9), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, step, 7]`` to ``[batch, 5]``."""
        state = torch.zeros(len(x), 9, dtype=x.dtype)
        for step in range(x.shape[1]):
            state = torch.tanh(self.enter(x[:, step]) + self.turn(state))
        return self.leave(state)


class Lstm(nn.Module):
    """An LSTM layer: its gates are four laid end to end."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.wide = nn.Linear(7, 64), nn.Linear(64, 66)
        self.narrow = nn.Linear(66, 5)
        self.lstm = nn.LSTM(5, 3, batch_first=True)
        self.leave = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, step, 7]`` to ``[batch, 2]``."""
        return self.leave(self.lstm(self.narrow(torch.relu(self.wide(torch.relu(self.enter(x))))))[0][:, -1])


class GluStride(nn.Module):
    """A gated unit by halves, then every other unit."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(7, 24), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, 7]`` to ``[batch, 5]``."""
        return self.leave(functional.glu(self.enter(x))[:, ::2])


class Interleave(nn.Module):
    """Two hidden values laid alternately: units 2i and 2i + 1 come from different layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.leave = nn.Linear(7, 6), nn.Linear(7, 6), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, 7]`` to ``[batch, 5]``."""
        return self.leave(torch.stack([torch.relu(self.a(x)), torch.tanh(self.b(x))], -1).flatten(1))


class ConstantTable(nn.Module):
    """A fixed table, not stored, scales the units of one layer; another layer is free."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(0.5, 2, 12), persistent=False)
        self.enter, self.middle, self.leave = nn.Linear(7, 12), nn.Linear(12, 9), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, 7]`` to ``[batch, 5]``."""
        return self.leave(torch.relu(self.middle(torch.relu(self.enter(x) * self.table))))


class MaxOut(nn.Module):
    """The larger of three pieces per unit: units move, and the pieces of each unit on their own."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(7, 24), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, 7]`` to ``[batch, 5]``."""
        return self.leave(self.enter(x).view(-1, 8, 3).amax(-1))


class PixelShuffle(nn.Module):
    """Channels become space."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.enter = nn.Conv2d(3, 30, 3, padding=1), nn.Conv2d(30, 12, 1)
        self.leave = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, 3, 4, 4]`` to ``[batch, 2, 8, 8]``."""
        return self.leave(functional.pixel_shuffle(self.enter(torch.relu(self.wide(x))), 2))


class Clash(nn.Module):
    """One axis read as 4 x 6 and as 6 x 4: no factors fit both."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.enter = nn.Linear(7, 40), nn.Linear(40, 24)
        self.a, self.b = nn.Linear(6, 5), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, 7]`` to ``[batch, 5]``."""
        x = torch.tanh(self.enter(torch.relu(self.wide(x))))
        return self.a(x.view(-1, 4, 6)).amax(1) + self.b(x.view(-1, 6, 4)).amax(1)


class Cumsum(nn.Module):
    """A running sum over hidden units: their order matters."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.leave = nn.Linear(7, 30), nn.Linear(30, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, 7]`` to ``[batch, 5]``."""
        return self.leave(torch.tanh(self.middle(torch.relu(self.enter(x))).cumsum(-1)))


class SharedUnits(nn.Module):
    """One small weight for all heads: the units of every head need the same map."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.unit, self.leave = nn.Linear(7, 24), nn.Linear(6, 6), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, 7]`` to ``[batch, 5]``."""
        heads = self.enter(x).view(-1, 4, 6)
        return self.leave(torch.relu(heads + torch.tanh(self.unit(heads))).flatten(1))


class Mixer(nn.Module):
    """Linear layers over tokens and over units in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 10)
        self.norm1, self.norm2 = nn.LayerNorm(10), nn.LayerNorm(10)
        self.tokens_up, self.tokens_down = nn.Linear(7, 14), nn.Linear(14, 7)
        self.units_up, self.units_down = nn.Linear(10, 15), nn.Linear(15, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, 7, 3]`` to ``[batch, 5]``."""
        x = self.embed(x)
        mixed = self.tokens_down(functional.gelu(self.tokens_up(self.norm1(x).transpose(1, 2))))
        x = x + mixed.transpose(1, 2)
        x = x + self.units_down(functional.gelu(self.units_up(self.norm2(x))))
        return self.head(x.mean(1))


class Routed(nn.Module):
    """Experts looked up by a router's choice; their hidden units are summed over experts before they are read."""

    def __init__(self, *, mixed: bool) -> None:
        super().__init__()
        self.mixed = mixed
        self.router = nn.Linear(7, 4)
        self.up, self.down = nn.Parameter(torch.zeros(4, 9, 7)), nn.Parameter(torch.zeros(4, 5, 9))

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, 7]`` to ``[batch, 5]``."""
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        hidden = torch.tanh(torch.einsum("bkfd,bd->bkf", self.up[chosen], x))
        if self.mixed:
            hidden = hidden.sum(1, keepdim=True).expand(-1, 2, -1)
        return (torch.einsum("bkof,bkf->bko", self.down[chosen], hidden) * weights[:, :, None]).sum(1)


class Odd(nn.Module):
    """Every width and the batch are 6, and a small layer is transformed by FFT, which has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.back = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.wave, self.leave = nn.Linear(6, 6, bias=False), nn.Linear(4, 2)
        self.wide, self.narrow = nn.Linear(6, 66), nn.Linear(66, 6)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, 6]`` to ``[batch, 2]``."""
        x = torch.relu(self.enter(x))
        x = x + self.narrow(torch.relu(self.wide(x)))
        x = x + self.back(torch.tanh(self.middle(x)))
        return self.leave(torch.fft.rfft(self.wave(x)).abs())


class Wave(nn.Module):
    """Most parameters write what an FFT reads."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(7, 12), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, 7]`` to ``[batch, 5]``."""
        return self.leave(torch.fft.rfft(self.enter(x)).abs())


def _vector(module: Callable[[], nn.Module], name: str, spaces: str | None, **more: object) -> Example:
    return Example(name, module, lambda: (normal(3, 7),), spaces, **more)  # type: ignore[arg-type]


EXAMPLES = (
    _vector(HeadGram, "head_gram", "2x4 2x6"),
    _vector(Outer, "outer", "1x4", note="the product of a value with itself has no separate positions per unit"),
    _vector(TransposedTie, "transposed_tie", "2x9"),
    Example("recurrent", Recurrent, lambda: (normal(3, 4, 7),), "1x9"),
    Example("lstm", Lstm, lambda: (normal(3, 4, 7),), None, note="gates need a rule; the layer before them is free"),
    _vector(GluStride, "glu_stride", "1x6"),
    _vector(Interleave, "interleave", "1x6"),
    _vector(ConstantTable, "constant_table", "1x9"),
    _vector(MaxOut, "max_out", "1x8 1x3/8"),
    Example("pixel_shuffle", PixelShuffle, lambda: (normal(2, 3, 4, 4),), None),
    _vector(Clash, "clash", "1x40"),
    _vector(Cumsum, "cumsum", "1x30"),
    _vector(SharedUnits, "shared_units", "1x4 1x6"),
    Example("mixer", Mixer, lambda: (normal(2, 7, 3),), "1x10 1x14 1x15"),
    _vector(lambda: Routed(mixed=False), "routed", "1x4 1x9/4", note="hidden units of every expert on their own"),
    _vector(lambda: Routed(mixed=True), "routed_sum", "1x4 1x9", note="hidden units of all experts are added"),
    Example("odd", Odd, lambda: (normal(6, 6),), "2x6 1x66"),
    _vector(Wave, "wave", None, refused=True),
)
