"""Which stored buffers are frequencies, and so constants."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from otfuse.program.export import export
from otfuse.testing.record import normal


class Holder(nn.Module):
    """One linear layer, one stored buffer of four numbers, and what they make together."""

    def __init__(self, make):
        super().__init__()
        self.layer, self.make = nn.Linear(3, 4), make
        self.register_buffer("held", torch.rand(4) + 0.5)

    def forward(self, x):
        return self.make(self, self.layer(x), x)


def positions(m):
    return torch.arange(5)[:, None].float() * m.held


CASES = {
    "rotary": (lambda m, h, x: h * positions(m).cos() + h.flip(-1) * positions(m).sin(), True),
    "through a matrix product": (lambda m, h, x: h * (torch.arange(5.0)[:, None] @ m.held[None]).cos(), True),
    "a turn of complex numbers": (
        lambda m, h, x: torch.view_as_real(torch.complex(h, h) * torch.polar(torch.ones(5, 4), positions(m))),
        True,
    ),
    "a sinusoid added": (lambda m, h, x: h + positions(m).sin(), False),
    "a table added": (lambda m, h, x: h + m.held, False),
    "a mask": (lambda m, h, x: h * m.held, False),
    "frozen statistics": (lambda m, h, x: h * (m.held + 1e-5).rsqrt(), False),
    "features of the input": (lambda m, h, x: h + (x.sum(-1, keepdim=True) * m.held).cos(), False),
    "a sine of units": (lambda m, h, x: (h * m.held).sin(), False),
    "an angle, and a factor too": (lambda m, h, x: h * positions(m).cos() * m.held, False),
    "an output": (lambda m, h, x: (h, m.held * 2), False),
}


@pytest.mark.parametrize("name", CASES)
def test_a_buffer_is_a_constant_where_it_only_turns(name):
    make, constant = CASES[name]
    program = export(Holder(make).eval(), (normal(2, 5, 3),))
    assert ("held" in program.shapes) is not constant
    assert ("held" in program.parameters.values()) is not constant
    assert (len(program.constants) > 0) is constant


class Table(nn.Module):
    """One linear layer, one stored table ``[5, 4]``, and what they make together."""

    def __init__(self, make, *, trained):
        super().__init__()
        self.layer, self.make = nn.Linear(3, 4), make
        self.held = nn.Parameter(torch.rand(5, 4), requires_grad=trained)

    def forward(self, x):
        return self.make(self, self.layer(x), x)


TABLES = {
    "looked up and multiplied": (lambda m, h, x: h * functional.embedding(torch.arange(5), m.held), True),
    "cut and multiplied": (lambda m, h, x: h[:, :3] * m.held[:3].view(3, 4), True),
    "looked up and added": (lambda m, h, x: h + functional.embedding(torch.arange(5), m.held), False),
    "multiplied as it is": (lambda m, h, x: h * m.held, False),
    "a mask of weights": (lambda m, h, x: functional.linear(x, m.layer.weight * m.held[0][:, None]) * m.held, False),
}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_a_constant_where_nobody_trained_it_and_its_rows_only_turn(name, trained):
    make, constant = TABLES[name]
    program = export(Table(make, trained=trained).eval(), (normal(2, 5, 3),))
    assert ("held" in program.shapes) is not (constant and not trained)


def test_another_name_of_the_buffer_goes_with_it():
    model = Holder(CASES["rotary"][0]).eval()
    model.register_buffer("again", model.held)
    assert sorted(export(model, (normal(2, 5, 3),)).shapes) == ["layer.bias", "layer.weight"]


def test_an_unread_buffer_stays_stored():
    assert "held" in export(Holder(lambda m, h, x: h).eval(), (normal(2, 5, 3),)).shapes
