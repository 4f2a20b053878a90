"""What forward asks of its inputs' values while it is traced: answered by the example, and asked again of other inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from otfuse.errors import TraceError
from otfuse.flow.derive import derive
from otfuse.program.export import export
from otfuse.program.run import Questions, Runner
from otfuse.testing.examples import example


class Asks(nn.Module):
    """A layer, and a function of it and the inputs; with a config, as models of a library have."""

    def __init__(self, function, config=object):
        super().__init__()
        self.layer, self.function = nn.Linear(4, 3), function
        if config is not None:
            self.config = config()

    def forward(self, x, n):
        return self.function(self, x, n)


def looped(m, x, n):
    """As often as the numbers say."""
    for times in n.tolist():
        for _ in range(times):
            x = x + torch.tanh(x)
    return m.layer(x)


def branched(m, x, n):
    return m.layer(x) if (n > 1).any() else m.layer(-x)


def repeated(m, x, n):
    return m.layer(x).repeat_interleave(n, 0)


def twice(m, x, n):
    """By a number of the code, which is no question."""
    return m.layer(x).repeat_interleave(2, 0)[: int(n.sum())]


def unfilled(m, x, n):
    """Places where the numbers are not zero, read from a value and written into another."""
    kept = m.layer(x)[n != 0]
    zeros = x.new_zeros(len(n), 3)
    zeros[n != 0] = kept
    return zeros


def listed(m, x, n):
    return torch.stack([m.layer(x)[int(i)] for i in n.nonzero()[:, 0]])


def unique(m, x, n):
    return m.layer(x)[torch.unique(n)]


def grown(m, x, n):
    """Known values are written into, then asked."""
    counts = torch.zeros_like(n)
    counts[1:] += n[:-1]
    return m.layer(x)[: int(counts.sum()) - 1]


def filled(m, x, n):
    """Into what holds no input yet; then the input itself changes."""
    counts = torch.zeros(4, dtype=torch.int64)
    first = counts[:2]
    first[:] = n[:2]
    n.add_(1)
    return m.layer(x)[: int(counts.sum())] * n[0]


FUNCTIONS = (filled, twice, looped, branched, repeated, unfilled, listed, unique, grown)
X, N = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0, 1, 1])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_answers_are_those_of_the_example(function):
    model = Asks(function)
    program = export(model, {"x": X, "n": N})
    weights = dict(model.named_parameters())
    (found,) = Runner(program)(weights)
    assert torch.equal(found, model(X, N.clone()))
    questions = Questions(program)
    assert questions.inputs() == ["n"]
    assert not questions.answered_anew({"x": X + 1, "n": N})
    assert torch.equal(Runner(program)(weights, {"x": X + 1, "n": N})[0], model(X + 1, N.clone())), (
        "values are not baked in"
    )
    assert questions.answered_anew({"x": X, "n": torch.tensor([0, 0, 0, 1])})


def test_what_is_computed_from_a_parameter_is_never_known():
    def written(m, x, n):
        counts = n.double()
        counts[0] = m.layer(x).sum()
        return m.layer(x) if counts.sum() > 0 else x

    with pytest.raises(TraceError, match=r"^Asks cannot be traced by torch\.export"):
        export(Asks(written), {"x": X, "n": N})


def test_a_module_of_the_users_own_is_not_answered():
    with pytest.raises(TraceError, match=r"^Asks cannot be traced by torch\.export: .* rewrite that part of forward"):
        export(Asks(branched, config=None), {"x": X, "n": N})


def test_inputs_on_which_the_module_does_not_run_are_told_in_its_own_words(capfd):
    model, inputs = example("llava").build(0)
    inputs["input_ids"][0, 5] = 7
    with pytest.raises(TraceError, match=r"does not run on these inputs: Image features and image tokens do not match"):
        export(model, inputs)
    assert capfd.readouterr().err == ""  # torch would print the program


def test_the_graph_tells_what_it_holds_for():
    program = export(Asks(looped), {"x": X, "n": N})
    assert derive(program).notes == (
        "what is computed depends on values of n: the graph holds for inputs that are alike in these",
    )
