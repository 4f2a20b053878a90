"""What is refused, in one sentence, and what is never promoted by luck."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import otfuse
from otfuse.core.space import Group
from otfuse.errors import GateError, MatchError, RuleError
from otfuse.flow.derive import derive
from otfuse.flow.match import require_match
from otfuse.flow.proof.act import generators
from otfuse.flow.proof.gate import Verification, verify_graph, verify_weights
from otfuse.flow.proof.trial import SpaceTrial
from otfuse.flow.rules.registry import RULES, Family, rule
from otfuse.program.export import export
from otfuse.program.whereabouts import where
from otfuse.testing.examples import EXAMPLES
from otfuse.testing.record import randomise


class Mixed(nn.Module):
    """All of the hidden units go through an operator without a rule."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(5, 4)

    def forward(self, x):
        hidden = torch.fft.rfft(self.up(x))  # the place that is named
        return self.down(hidden.abs())


class Cyclic(nn.Module):
    """Only rotations of the four units leave the function unchanged: every unit meets the next one."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 4), nn.Linear(6, 300)
        self.head = nn.Linear(300, 3)

    def forward(self, x):
        hidden = self.up(x)
        ring = torch.stack([hidden, hidden.roll(1, -1)]).prod(0)
        return self.head(torch.relu(self.down(x))) * ring.sum(-1, keepdim=True)


def test_an_operator_without_a_rule_is_named_with_place_and_remedy():
    line = Mixed.forward.__code__.co_firstlineno + 1
    message = rf"^no flow rule for aten\.fft_rfft\.default, called at test_refusals\.py:{line}: .*docs/rules\.md\)$"
    with pytest.raises(RuleError, match=message) as caught:
        otfuse.trace(randomise(Mixed(), 0), (torch.randn(3, 6),))
    assert "\n" not in str(caught.value)


def test_a_view_as_another_type_is_no_layout():
    class Bits(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down, self.head = nn.Linear(6, 4), nn.Linear(6, 300), nn.Linear(300, 3)

        def forward(self, x):
            bits = self.up(x).view(torch.int8).cumsum(-1).sum(-1, keepdim=True)
            return self.head(torch.relu(self.down(x))) * bits

    graph = otfuse.trace(randomise(Bits(), 0), (torch.randn(3, 6),))
    assert next(s for s in graph.spaces if s.size == 4).pinned == "no rule for view.dtype"


def test_a_symmetry_under_rotations_only_is_not_taken_for_all_permutations():
    graph = otfuse.trace(randomise(Cyclic(), 0), (torch.randn(3, 6),))
    assert all(space.size != 4 for space in graph.free)


@pytest.mark.parametrize(("size", "copies"), [(1, 1), (2, 3), (4, 1), (5, 2)])
def test_generators_reach_every_permutation(size, copies):
    space = otfuse.trace(*EXAMPLES["mlp"].build(0)).free[0]
    elements = generators(replace(space, size=size, copies=copies), 0)
    first = {tuple(e.order[0].tolist()) for e in elements}
    reached, todo = {tuple(range(size))}, [tuple(range(size))]
    while todo:
        at = todo.pop()
        for step in first:
            new = tuple(at[i] for i in step)
            if new not in reached:
                reached.add(new)
                todo.append(new)
    assert len(reached) == np.prod(range(1, size + 1))
    assert all(sorted(row) == list(range(size)) for e in elements for row in e.order.tolist())
    assert copies == 1 or elements[2].order[1:].tolist() == [list(range(size))] * (copies - 1)


def test_no_space_is_tried_without_numbers():
    with torch.device("meta"):
        model = nn.Linear(3, 4)
    program = export(model, (torch.empty(2, 3, device="meta"),))
    assert SpaceTrial(model, program)([otfuse.trace(*EXAMPLES["mlp"].build(0)).free[:1]]) == [None]


def test_a_model_on_the_meta_device_has_the_spaces_of_a_real_one():
    config = transformers.LlamaConfig(
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=50,
    )
    real = otfuse.trace(transformers.LlamaForCausalLM(config).eval())
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).eval()
    empty = otfuse.trace(model)
    assert [(s.id, s.size, s.copies, s.group) for s in empty.spaces] == [
        (s.id, s.size, s.copies, s.group) for s in real.spaces
    ]
    assert [n.kind for n in empty.nodes] == [n.kind for n in real.nodes]


# -- the gate --------------------------------------------------------------------------------------------------------
def test_a_wrong_graph_does_not_pass_the_gate():
    model, inputs = EXAMPLES["mlp"].build(0)
    program = export(model, inputs)
    graph = derive(program)
    pinned = next(s for s in graph.spaces if s.pinned and "output" in s.pinned)
    wrong = replace(
        graph,
        spaces=tuple(replace(s, pinned=None, group=Group.PERMUTATION) if s is pinned else s for s in graph.spaces),
    )
    verify_graph(model, program, graph).require(1e-8)
    with pytest.raises(GateError, match=r"^the derived flow graph is not exact: .* report"):
        verify_graph(model, program, wrong).require(1e-8)


@pytest.mark.parametrize(("error", "control"), [(float("nan"), 1.0), (1e-3, 1.0), (0.0, 1e-5), (0.0, float("nan"))])
def test_the_gate_refuses_what_it_cannot_compare(error, control):
    graph = otfuse.trace(*EXAMPLES["mlp"].build(0))
    with pytest.raises(GateError):
        Verification(error, control, graph).require(1e-4)


def fresh(class_name, **options):
    model_class = getattr(transformers, class_name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model_class(model_class.config_class(**options)).eval()


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 60}


@pytest.mark.parametrize("layers", [2, 16])
@pytest.mark.parametrize("class_name", ["BertForMaskedLM", "LlamaForCausalLM"])
def test_freshly_made_and_deep_models_raise_no_false_alarm_in_single_precision(class_name, layers):
    model = fresh(class_name, **SMALL, num_hidden_layers=layers)
    program = export(model)
    verify_weights(model, program, derive(program)).require(1e-4)


def test_a_model_whose_outputs_are_not_numbers_is_named_as_such():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    program = export(model, (torch.full((2, 4), torch.inf),))
    with pytest.raises(GateError, match=r"the model's own outputs hold values that are not numbers \(NaN\)"):
        verify_weights(model, program, derive(program))


def test_layers_that_are_still_zero_do_not_blind_the_control():
    model = fresh("GPT2LMHeadModel", n_embd=32, n_layer=3, n_head=4, vocab_size=60, n_positions=16)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "c_proj" in name:
                tensor.zero_()
    program = export(model)
    found = verify_weights(model, program, derive(program))
    found.require(1e-4)
    assert found.control > 1e-2


def test_a_module_that_draws_noise_is_verified_on_the_same_noise():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.down(torch.relu(self.up(x + torch.rand(5))))

    model, inputs = randomise(Noisy(), 0), (torch.randn(4, 5),)
    before = torch.random.get_rng_state()
    check = otfuse.verify(model, inputs)
    assert check.error < 1e-8
    assert check.control > 1e-2
    assert torch.equal(before, torch.random.get_rng_state())


# -- matching, registry, places --------------------------------------------------------------------------------------
def test_models_that_differ_are_not_matched():
    two, other = otfuse.trace(*EXAMPLES["hf_vit"].build(0)), otfuse.trace(*EXAMPLES["deit"].build(0))
    require_match(two, two, ("a", "b"))
    with pytest.raises(MatchError, match=r"^b cannot be fused into a: their architectures differ \(only .+\); give"):
        require_match(two, other, ("a", "b"))


def test_a_second_rule_for_an_operator_is_refused():
    with pytest.raises(ValueError, match="'linear' has a rule already"):
        rule("linear", family=Family.NONE)(RULES["linear"].apply)


class Stub:
    op = "call_function"

    def __init__(self, *files):
        self.meta = {
            "stack_trace": "".join(f'  File "{f}", line {i}, in forward\n    x\n' for i, f in enumerate(files, 7))
        }


@pytest.mark.parametrize(
    ("files", "place"),
    [
        (("home/me/torch/model.py",), "model.py:7"),
        (("home/me/model.py", "lib/site-packages/einops/einops.py", torch.__file__), "model.py:7"),
        (("lib/site-packages/transformers/models/x/modeling_x.py", torch.__file__), "modeling_x.py:7"),
        (("home/me/model.py", "<eval_with_key>.17"), "model.py:7"),
        ((f"{Path(torch.__file__).parent}/nn/modules/transformer.py",), "transformer.py:7"),
        ((f"{Path(otfuse.__file__).parent}/program/export.py",), "an unknown place"),
        ((), "an unknown place"),
    ],
)
def test_the_place_is_in_the_users_code_if_it_can_be(files, place):
    assert where(Stub(*files)) == place


def test_what_cond_rewrites_is_named_by_the_place_that_calls_it():
    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            hidden = torch.cond(x.sum() > 0, lambda h: h.cumsum(-1), lambda h: 2 * h, (self.up(x),))
            return self.down(hidden)

    wanted = r"^no flow rule for cond, called at test_refusals\.py:\d+: it would pin"
    with pytest.raises(RuleError, match=wanted):
        otfuse.trace(Either().eval(), (torch.randn(3, 6),))


def test_nodes_name_places_of_the_model_that_is_traced():
    found = otfuse.trace(*EXAMPLES["plain_vit"].build(0))
    assert {n.where.partition(":")[0] for n in found.nodes} == {"plain.py"}
