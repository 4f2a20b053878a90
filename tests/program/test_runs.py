"""Reading by numbers that the program holds, where it is a slice and where it is not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from named import Named
from otfuse.program.export import export
from otfuse.program.run import Runner
from otfuse.testing.record import normal, randomise

CASES = {  # what is read of [batch, 6, 4], and whether it is a run of places
    "one from behind": (lambda m, h: h[:, [-2]], True),
    "a run": (lambda m, h: h[:, [1, 2, 3]], True),
    "a run along the last": (lambda m, h: h[..., [2, 3]], True),
    "selected": (lambda m, h: torch.index_select(h, -2, torch.tensor([3, 4])), True),
    "backwards": (lambda m, h: h[:, [2, 1]], False),
    "with a gap": (lambda m, h: h[:, [0, 2]], False),
    "round the end": (lambda m, h: h[:, [-1, 0]], False),
    "twice": (lambda m, h: h[:, [1, 1]], False),
    "along two dimensions": (lambda m, h: h[:, [1, 2], [1, 2]], False),
    "a table of numbers": (lambda m, h: h[:, [[1, 2]]], False),
    "by what came in": (lambda m, h: h[:, h[0].sum().long().clamp(1, 1)[None]], False),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_of_places_is_a_slice(name):
    read, is_run = CASES[name]
    model = randomise(Named(lambda m, x: read(m, m.a(x).view(-1, 6, 4)).flatten(1), {"a": nn.Linear(7, 24)}).eval(), 0)
    program = export(model, (normal(3, 7),))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert bool(names & {"aten.index.Tensor", "aten.index_select.default"}) is not is_run
    (found,) = Runner(program)(dict(model.named_parameters()))
    with torch.no_grad():
        assert torch.equal(found, model(normal(3, 7)))


def test_nothing_is_computed_after_the_last_value_that_is_watched():
    model = Named(lambda m, x: m.c(m.b(m.a(x))), {name: nn.Linear(4, 4) for name in "abc"}).eval()
    program = export(model, (normal(3, 4),))
    steps = [node.name for node in program.graph.nodes if node.target == torch.ops.aten.linear.default]
    read = []

    class Told(dict):
        def __getitem__(self, name):
            read.append(name[0])
            return super().__getitem__(name)

    values = dict(Runner(program).watch(Told(model.named_parameters()), program.inputs, dict.fromkeys(steps[:2])))
    assert (list(values), sorted(set(read))) == (steps[:2], ["a", "b"])
    with torch.no_grad():
        assert torch.equal(values[steps[1]], model.b(model.a(normal(3, 4))))
