"""Programs: what a module computes, its stored tensors by name, and the sentence when it cannot be traced."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from otfuse.errors import TraceError
from otfuse.program.export import export, stored
from otfuse.program.run import Runner
from otfuse.testing.examples import EXAMPLES
from otfuse.testing.plain import PlainVit
from otfuse.testing.record import randomise


def held(model):
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    ties, _ = stored(model)
    return {name: tensors[name].detach() for name, first in ties.items() if name == first}


@pytest.mark.parametrize("name", ["hf_vit", "gpt2", "t5", "resnet", "plain_vit"])
def test_a_program_computes_what_its_module_does(name):
    model, inputs = EXAMPLES[name].build(0)
    args, kwargs = (inputs, {}) if isinstance(inputs, tuple) else ((), inputs)
    with torch.no_grad():
        result = model(*args, **kwargs)
    expected = result if isinstance(result, torch.Tensor) else result.logits
    (found,) = Runner(export(model, inputs))(held(model))
    assert torch.allclose(found, expected, atol=1e-5)


def test_one_program_serves_other_weights_of_the_same_shapes():
    one, other = (randomise(PlainVit(), seed).eval() for seed in (0, 1))
    images = torch.randn(2, 3, 12, 12)
    (found,) = Runner(export(one, (images,)))(held(other))
    with torch.no_grad():
        assert torch.allclose(found, other(images), atol=1e-5)
        assert not torch.allclose(found, one(images), atol=1e-2)


def test_values_can_be_watched_in_the_order_in_which_they_appear():
    model = randomise(PlainVit(), 0).eval()
    program = export(model, (torch.randn(2, 3, 12, 12),))
    names = [node.name for node in program.graph.nodes if "linear" in node.name]
    seen = list(Runner(program).watch(held(model), program.inputs, dict.fromkeys(names)))
    assert [name for name, _ in seen] == names
    assert seen[-1][1].shape == (2, 5)


def test_a_linear_layer_is_worked_out_only_where_it_is_wanted():
    model = randomise(PlainVit(), 0).eval()
    program = export(model, (torch.randn(2, 3, 12, 12),))
    name = next(node.name for node in program.graph.nodes if "linear" in node.name)
    ((_, whole),) = Runner(program).watch(held(model), program.inputs, {name: None})
    ((_, part),) = Runner(program).watch(held(model), program.inputs, {name: torch.tensor([0, 3])})
    assert part.shape == whole.shape
    assert torch.allclose(part[:, [0, 3]], whole[:, [0, 3]], atol=1e-6)
    assert (part[:, [1, 2]] == 0).all()
    assert (whole[:, [1, 2]] != 0).any()


def test_dead_code_is_not_live():
    class Shape(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 7)

        def forward(self, x):
            self.idle(x)
            return self.used(x)

    program = export(Shape(), (torch.randn(2, 4),))
    live = {program.parameters[n.name] for n in program.live() if n.name in program.parameters}
    assert live == {"used.weight", "used.bias"}


def test_tied_tensors_have_one_first_name_also_on_the_meta_device():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.head.weight = self.embed.weight

    with torch.device("meta"):
        model = Tied()
    ties, shapes = stored(model)
    assert ties == {"embed.weight": "embed.weight", "head.weight": "embed.weight"}
    assert shapes == {"embed.weight": (9, 4), "head.weight": (9, 4)}


def test_modes_of_all_modules_are_left_as_they_were():
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 2)).train()
    model[1].eval()
    export(model, (torch.randn(2, 4),))
    assert [m.training for m in model] == [True, False, True]


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x[x[:, 0] > 0])


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (Branches, r"^Branches cannot be traced by torch\.export: .+; give other example_inputs, or rewrite"),
        (Counts, r"^Counts cannot be traced(?: by torch\.export)?: .+; .*rewrite that part of forward"),
    ],
)
def test_what_depends_on_the_data_is_refused_in_one_sentence(module, sentence):
    with pytest.raises(TraceError, match=sentence) as caught:
        export(module(), (torch.randn(5, 4),))
    assert "\n" not in str(caught.value)
