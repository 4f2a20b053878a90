"""The largest exact group of every space: what theory expects is found, and what is found is exact, on any weights."""

from __future__ import annotations

import functools

import pytest
import torch

import otfuse
from otfuse.core.symmetry import Kind
from otfuse.errors import UsageError
from otfuse.flow.groups import find
from otfuse.flow.groups.canonical import CanonicalWeights
from otfuse.flow.groups.element import act, draw, element
from otfuse.flow.groups.find import EqualWeights, symmetries
from otfuse.flow.groups.tried import Bench, moved
from otfuse.flow.proof.gate import change
from otfuse.fusion.sides import traced
from otfuse.io.parents import given
from otfuse.program.run import Runner
from otfuse.testing.examples import EXAMPLES
from otfuse.testing.law import _Double

P, S, POS, SCALE, TURN = Kind.PERMUTATION, Kind.SIGNS, Kind.POSITIVE, Kind.SCALING, Kind.TURN
ONES, O, GL = Kind.ORTHOGONAL_ONES, Kind.ORTHOGONAL, Kind.INVERTIBLE  # noqa: E741
PRE = {"stream": {ONES}, "query-key": {GL}, "value-output": {GL}, "units": {P}, "heads": {P}}
POST = PRE | {"stream": {P}}
GATED = {"stream": {O}, "query-key": {TURN}, "value-output": {GL}, "units": {SCALE}, "heads": {P}, "queries": {P}}
EXPECTED = {
    "hf_vit": PRE,
    "plain_vit": PRE,
    "dinov2": PRE,
    "gpt2": POST,
    "gpt2 untied": PRE,
    "bert": POST,
    "bloom": {k: v for k, v in POST.items() if k != "heads"},
    "llama_gqa": GATED,
    "phi3_fused": GATED,
    "qwen3": {k: v for k, v in GATED.items() if k != "query-key"},
    "gemma": GATED | {"stream": {S}},
    "mixtral": GATED | {"experts": {P}},
    "deepseek_v3": PRE | {"stream": {O}, "query-key": {TURN, GL}, "units": {SCALE, O}, "experts": {P}},
    "gptj_interleaved": PRE | {"query-key": {TURN, GL}},
    "t5": PRE | {"stream": {S}, "units": {POS}},
    "t5 untied": PRE | {"stream": {O}, "units": {POS}},
    "opt": PRE | {"units": {POS, O}},
    "swin": PRE | {"stream": {P, ONES}},
    "hf_resnet": {"stream": {POS}, "channels": {POS}},
}
LEFT = {"hf_vit": 0, "gpt2": 1, "gpt2 untied": 0, "bert": 5, "dinov2": 0, "gemma": 1, "mixtral": 0, "swin": 1}


@functools.cache
def side(name):
    module, inputs = EXAMPLES[name.removesuffix(" untied")].build(0)
    if name.endswith("untied"):
        head = module.get_output_embeddings()
        head.weight = torch.nn.Parameter(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(0)))
        module.config.tie_word_embeddings = False
    return traced(given(module, name, to_fuse=False), inputs)


@functools.cache
def found(name):
    return symmetries(side(name))


def of(module, inputs=None):
    return symmetries(traced(given(module.eval(), "model", to_fuse=False), inputs))


def kinds(symmetric):
    told = {}
    for symmetry in symmetric.found:
        told.setdefault(symmetry.space.kind, set()).add(symmetry.kind)
    return told


def gains(graph):
    return {m.tensor for s in graph.spaces if s.pinned is None for m in s.members if m.role == "scales"}


def answers(module, inputs):
    args, named = (inputs, {}) if isinstance(inputs, tuple) else ((), inputs)
    with torch.no_grad(), _Double():
        result = module(*args, **named)
    return (result if isinstance(result, torch.Tensor) else result.logits,)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_group_of_theory_is_found(name):
    assert kinds(found(name)) == EXPECTED[name]
    assert found(name).notes == ()


@pytest.mark.parametrize("name", EXPECTED)
def test_random_members_of_all_groups_after_all_folds_leave_the_outputs(name):
    one, symmetric = side(name), found(name)
    run = Runner(one.program, double=True)
    members = [element(symmetry, seed=7) for symmetry in symmetric.found]
    equal = EqualWeights(one.weights, symmetric, one.graph.ties, members)
    assert change(run(equal), run(one.weights)) < 1e-11
    for symmetry in symmetric.found:
        moves = [s.tensor for s in symmetry.slots if not s.order_only]
        assert not any(torch.equal(equal[n], one.weights[n].double()) for n in moves), symmetry.space.id


@pytest.mark.parametrize("name", LEFT)
def test_gains_fold_wherever_nothing_else_reads_what_they_scale(name):
    folds = found(name).folds
    assert len(gains(side(name).graph) - {fold.gain for fold in folds}) == LEFT[name]
    canonical = CanonicalWeights(side(name).weights, folds, side(name).graph.ties)
    for fold in folds:  # written as they are, or as 1 + w
        assert canonical[fold.gain].unique().tolist() in ([1.0], [0.0])


def test_a_bias_that_no_reader_takes_stays_on_the_norm_over_its_gain():
    untied, last = found("gpt2 untied"), "transformer.ln_f"
    canonical = CanonicalWeights(side("gpt2 untied").weights, untied.folds, side("gpt2 untied").graph.ties)
    weights = side("gpt2 untied").weights
    torch.testing.assert_close(canonical[f"{last}.bias"], weights[f"{last}.bias"] / weights[f"{last}.weight"])
    assert not canonical["transformer.h.0.ln_1.bias"].any()


def test_a_canonical_tensor_reads_only_what_it_is_made_of():
    one, read = side("hf_vit"), []

    class Files(dict):
        def __getitem__(self, name):
            read.append(name)
            return super().__getitem__(name)

    canonical = CanonicalWeights(Files(one.weights), found("hf_vit").folds, one.graph.ties)
    assert canonical["vit.layers.0.mlp.fc2.weight"] is one.weights["vit.layers.0.mlp.fc2.weight"]
    made = canonical["vit.layers.0.mlp.fc1.weight"]
    assert set(read) == {f"vit.layers.0.{n}.weight" for n in ("mlp.fc1", "mlp.fc2", "layernorm_after")}
    assert made.dtype is torch.float32


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_gains_of_one_and_biases_of_zero_prove_nothing(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = EXAMPLES[name].module()
    assert kinds(of(fresh, EXAMPLES[name].inputs())) == EXPECTED[name]


class Strange(torch.nn.Module):
    """Nothing of the library's: a norm of its own with a stored 1 + w, a product of three, a bottleneck, shared weights."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = torch.nn.Linear(7, 12), torch.nn.Linear(12, 5, bias=False)
        self.w, self.c = torch.nn.Parameter(torch.randn(12) / 3), torch.nn.Parameter(torch.randn(12))
        self.a, self.b, self.d = (torch.nn.Linear(12, 9) for _ in range(3))
        self.back, self.down, self.up = torch.nn.Linear(9, 12), torch.nn.Linear(12, 4), torch.nn.Linear(4, 12)

    def normed(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.w)

    def forward(self, x):
        x = self.enter(x)
        for _ in range(2):  # the same layer twice
            y = self.normed(x)
            x = x + self.back(torch.sigmoid(self.a(y)) * self.b(y) * torch.relu(self.d(y)))
        return self.leave((x + self.up(self.down(self.normed(x)))) * self.c)


def test_a_model_that_nobody_listed():
    torch.manual_seed(0)
    strange = Strange()
    symmetric = of(strange, (torch.randn(3, 4, 7),))
    told = {(s.n, s.kind) for s in symmetric.found}
    assert told == {(12, O), (9, SCALE), (4, GL)}
    assert {fold.gain for fold in symmetric.folds} == {"w", "c"}
    linear = next(s for s in symmetric.found if s.n == 9)
    assert {s.tensor for s in linear.slots if not s.order_only} == {"b.weight", "b.bias", "back.weight"}


def test_a_gain_of_zero_cannot_be_divided_by():
    class Zero(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.norm = torch.nn.Linear(7, 6), torch.nn.LayerNorm(6)
            self.leave = torch.nn.Linear(6, 5, bias=False)

        def forward(self, x):
            return self.leave(self.norm(self.enter(x)))

    torch.manual_seed(0)
    model, inputs = Zero(), (torch.randn(3, 7),)
    torch.nn.init.normal_(model.norm.bias)
    assert kinds(of(model, inputs)) == {"units": {ONES}}
    model.norm.weight.data[2] = 0
    assert kinds(of(model, inputs)) == {"units": {P}}


def test_a_space_that_spoils_the_joint_gate_is_narrowed_and_told(monkeypatch):
    right = find.largest

    def wrong(bench, graph, symmetric, seed, *, each):
        answers = right(bench, graph, symmetric, seed, each=each)
        return [find.replace(s, kind=O) if s.kind is ONES else s for s in answers]

    monkeypatch.setattr(find, "largest", wrong)
    narrowed = symmetries(side("plain_vit"))
    assert kinds(narrowed) == PRE | {"stream": {P}}
    assert len(narrowed.notes) == 1
    assert "its group (orthogonal) is not exact" in narrowed.notes[0]


def test_what_is_given_up_early_is_what_would_have_failed():
    bench = Bench(side("t5").program, side("t5").weights)
    units = next(s for s in found("t5").found if s.space.kind == "units")
    wrong = [element(find.replace(units, kind=kind), 0) for kind in (S, POS)]
    soon, whole = (bench.gaps([moved([e], i, whole=w) for i, e in enumerate(wrong)]) for w in (False, True))
    assert soon[0] == float("inf")
    assert 1e-6 < whole[0] < 10
    assert soon[1] < 1e-9 > whole[1]


def test_weights_that_cannot_be_run_claim_no_more_than_the_graph():
    with torch.device("meta"):
        model = EXAMPLES["hf_vit"].module()
    told = of(model)
    assert {s.kind for s in told.found} == {P}
    assert told.folds == ()
    assert "meta device" in told.notes[0]


@pytest.mark.parametrize("kind", Kind)
def test_draws_are_members_and_act_as_their_matrices_do(kind):
    name, n = ("mixtral", "experts.gate_up_proj") if not kind.mixes else ("llama_gqa", "v_proj.weight")
    wanted = TURN if kind is TURN else SCALE if not kind.mixes else GL
    base = next(s for s in found(name).found if s.kind is wanted)
    symmetry = find.replace(base, kind=kind)
    maps, tensor = draw(symmetry, 5), next(s.tensor for s in symmetry.slots if n in s.tensor or kind is TURN)
    value = side(name).weights[tensor].double()
    torch.testing.assert_close(element(symmetry, 5)(tensor, value), act(symmetry, maps, tensor, value))
    one = torch.eye(symmetry.n, dtype=torch.float64).expand_as(maps)
    singular = torch.linalg.svdvals(maps)
    assert float((singular[:, 0] / singular[:, -1]).max()) < 3
    if kind in (P, S, O, ONES):
        torch.testing.assert_close(maps @ maps.mT, one)
    if kind in (P, ONES):
        torch.testing.assert_close(maps.sum(2), torch.ones(maps.shape[:2], dtype=torch.float64))
    if kind in (P, S, POS, SCALE):
        assert bool(((maps != 0).sum(1) == 1).all())
    if kind in (P, POS):
        assert bool((maps >= 0).all())


def test_acting_is_differentiable_in_maps_and_tensor():
    symmetry = next(s for s in found("llama_gqa").found if s.space.kind == "value-output")
    name = next(s.tensor for s in symmetry.slots if s.inverse)
    maps, value = draw(symmetry, 0), side("llama_gqa").weights[name].double()[:2]
    assert torch.autograd.gradcheck(
        lambda m, v: act(symmetry, m, name, v), (maps.requires_grad_(), value.clone().requires_grad_())
    )


@pytest.mark.parametrize(("name", "seed"), [("llama_gqa", 2**40), ("dinov2", 3)])
def test_equivalent_computes_the_same_from_other_weights(name, seed):
    model, inputs = EXAMPLES[name].build(0)
    model = model.double()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    copy = otfuse.equivalent(model, inputs, seed=seed)
    assert type(copy) is type(model)
    assert copy.config.to_dict() == model.config.to_dict()
    assert change(answers(copy, inputs), answers(model, inputs)) < 1e-8
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(t.dtype is torch.float64 for t in copy.parameters())
    same = {n for n, t in before.items() if t.ndim > 1 and torch.equal(copy.state_dict()[n], t)}
    assert same == {n for n in before if n.endswith("mask_token")}  # no output depends on it


def test_equivalent_by_permutations_sorts_the_same_numbers_and_keeps_half_precision(tmp_path):
    model, inputs = EXAMPLES["llama_gqa"].build(0)
    model.bfloat16().save_pretrained(tmp_path)
    for source in (model, str(tmp_path)):
        copy = otfuse.equivalent(source, inputs, seed=1, groups="permutation")
        assert {p.dtype for p in copy.parameters()} == {torch.bfloat16}
        for name, tensor in model.state_dict().items():
            assert torch.equal(copy.state_dict()[name].flatten().sort().values, tensor.flatten().sort().values)
        assert not torch.equal(copy.state_dict()["model.norm.weight"], model.state_dict()["model.norm.weight"])


def test_the_graph_tells_the_full_group():
    full = find.with_groups(side("llama_gqa").graph, found("llama_gqa"))
    told = {s.kind: (str(s.group), s.exact) for s in full.spaces if s.pinned is None}
    assert told["stream"] == ("orthogonal", "orthogonal")
    assert told["units"] == ("monomial", "scaling")
    assert told["query-key"] == ("rotary", "turn")
    model, inputs = EXAMPLES["outer"].build(0)
    assert [s.exact for s in otfuse.trace(model, inputs, groups="full").free] == ["signs"]
    assert [s.exact for s in otfuse.trace(model, inputs).free] == [None]
    with pytest.raises(UsageError, match="'full' and 'permutation'"):
        otfuse.trace(model, inputs, groups="some")
