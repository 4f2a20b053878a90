"""A model fused with a permuted copy of itself stays itself: the permutation is found, and carried through everything."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import ViTConfig, ViTForImageClassification

import otfuse
from align_copies import UNITS, case, fuse
from named import Named
from otfuse.testing.examples import example
from otfuse.testing.record import normal, randomise

ROUNDING = 2e-6  # relative, of float32 outputs: moving units alone changes them by up to 5e-7
MODELS = ["hf_vit", "bert", "gpt2", "llama_gqa", "t5", "deit", "clip", "plain_vit", "resnet", "vit_bert"]
HEADS = [
    "hf_vit",
    "bert",
    "gpt2",
    "llama_gqa",
    "t5",
    "plain_vit",
    "vit_bert",
    "torch_encoder_first",
    "phi3_fused",
    "qwen3",
    "esm",
    "roformer",
]


@pytest.fixture(scope="module")
def built():
    made = {}

    def build(name):
        return made[name] if name in made else made.setdefault(name, case(*example(name).build(0)))

    return build


@pytest.mark.parametrize("query_key", ["separate", "tied"])
@pytest.mark.parametrize("features", ["activations", "weights"])
@pytest.mark.parametrize("name", MODELS)
def test_stream_and_units(built, name, features, query_key):
    model = built(name)
    moved = model.permuted(UNITS)
    assert any(not moved.weights[n].equal(t) for n, t in model.side.weights.items())
    found = fuse(model.side, [moved], model.data, features=features, query_key=query_key)
    assert model.change(found.weights) < ROUNDING


@pytest.mark.parametrize("query_key", ["heads", "separate"])
@pytest.mark.parametrize("features", ["activations", "weights"])
@pytest.mark.parametrize("name", HEADS)
def test_heads_query_heads_and_units_inside(built, name, features, query_key):
    model = built(name)
    moved = model.permuted(None)
    found = fuse(model.side, [moved], model.data, features=features, query_key=query_key)
    assert model.change(found.weights) < ROUNDING


@pytest.mark.parametrize("query_key", ["separate", "tied", "heads"])
def test_what_the_class_token_asks_in_the_only_block_is_the_same_for_every_input(query_key):
    """Nothing else of the query is read, so its values tell its units apart by nothing: its weights are compared."""
    shape = {"hidden_size": 24, "intermediate_size": 36, "num_attention_heads": 4, "image_size": 12, "patch_size": 4}
    config = ViTConfig(num_hidden_layers=1, num_labels=5, **shape)
    model = case(randomise(ViTForImageClassification(config), 0).eval(), {"pixel_values": normal(2, 3, 12, 12)})
    moved = model.permuted(None)
    found = fuse(model.side, [moved], model.data, query_key=query_key)
    assert model.change(found.weights) < ROUNDING


@pytest.mark.parametrize("name", MODELS)
def test_the_control_can_fail(built, name):
    model = built(name)
    plain = fuse(model.side, [model.permuted(UNITS)], model.data, scheme="average")
    assert model.change(plain.weights) > 0.01


def test_maps_say_where_the_units_went(built):
    """``maps`` by space id are ``[anchor, source]``: the permutation that made the copy."""
    model = built("hf_vit")
    moved = model.permuted(UNITS, seed=3)
    maps = fuse(model.side, [moved], model.data).alignments[0].maps
    for space in (s for s in model.side.graph.free if s.kind in UNITS):
        found = maps[space.id]
        assert found.shape == (space.size, space.size)
        member = next(m for m in space.members if model.side.weights[m.tensor].ndim == 1)
        ours, theirs = (w[member.tensor] for w in (model.side.weights, moved.weights))
        assert not theirs.equal(ours)
        assert (found @ theirs).equal(ours)


def lettered(m, x):
    """Attention by einsum, and a projection too."""
    q, k, v = (layer(x).view(*x.shape[:2], 2, -1) for layer in (m.q, m.k, m.v))
    seen = torch.einsum("bhts,bshd->bthd", torch.einsum("bthd,bshd->bhts", q, k).softmax(-1), v)
    return m.leave(torch.tanh(torch.einsum("bti,oi->bto", seen.flatten(2), m.o)))


def shuffled(m, x):
    """A pixel shuffle written with views."""
    h = torch.relu(m.a(x)).view(len(x), 4, 2, 2, 8, 8).permute(0, 1, 4, 2, 5, 3)
    return m.b(h.reshape(len(x), 4, 16, 16))


def gated(m, x):
    """Every other unit gates its neighbour, and each call of the layer is read by half."""
    return m.b(functional.silu(m.a(x)[..., ::2]) * m.a(x)[..., 1::2])


def narrowed(m, x):
    """One gate for all units of a place."""
    return m.b(torch.relu(m.a(x)) * torch.sigmoid(m.gate(x)))


def stacked(m, x):
    """Experts side by side, weighed by a router and added."""
    h = torch.relu(m.e(x))
    experts = torch.stack([down(torch.relu(up(h))) for up, down in ((m.up0, m.down0), (m.up1, m.down1))], -1)
    return m.b(h + (experts * m.gate(h).softmax(-1)[..., None, :]).sum(-1))


L = nn.Linear
FORMULAS = {  # function, layers, shape of the input
    "lettered": (lettered, {"q": L(6, 8), "k": L(6, 8), "v": L(6, 10), "leave": L(9, 3), "o": nn.Parameter(torch.zeros(9, 10))}, (5, 6)),
    "interleaved": (gated, {"a": L(6, 16), "b": L(8, 3)}, (5, 6)),
    "one gate": (narrowed, {"a": L(6, 9), "gate": L(6, 1), "b": L(9, 3)}, (5, 6)),
    "experts": (
        stacked,
        {"e": L(6, 8), "gate": L(8, 2), "up0": L(8, 7), "up1": L(8, 7), "down0": L(7, 8), "down1": L(7, 8), "b": L(8, 3)},
        (5, 6),
    ),
    "pixel shuffle": (shuffled, {"a": nn.Conv2d(3, 16, 1), "b": nn.Conv2d(4, 5, 1)}, (3, 8, 8)),
}  # fmt: skip


@pytest.mark.parametrize("features", ["activations", "weights"])
@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_that_hide_their_layers(name, features):
    function, layers, shape = FORMULAS[name]
    model = case(randomise(Named(function, layers).eval(), 0), (normal(2, *shape),))
    moved = model.permuted(("units", "value-output", "channels", "stream"))
    found = fuse(model.side, [moved], model.data, features=features)
    assert model.change(found.weights) < ROUNDING
    assert all("gate" in note for note in found.alignments[0].notes)  # a router is carried by the maps of its spaces


def test_a_layer_that_reads_what_is_not_followed_is_noted():
    def forward(m, x):
        return m.b(torch.slice_scatter(m.a(x), torch.tanh(m.c(x)), 1, 0, 4))

    model = randomise(Named(forward, {"a": nn.Linear(6, 9), "c": nn.Linear(6, 4), "b": nn.Linear(9, 3)}).eval(), 0)
    fused = otfuse.fuse([model, model], "otfusion-emd", data={"x": normal(20, 6).numpy()})
    assert any("not followed" in note for note in fused.report.notes)


@pytest.mark.parametrize("features", ["activations", "weights"])
def test_what_is_stored_for_every_unit_of_every_expert_is_noted(features):
    def forward(m, x):
        h = torch.relu(m.a(x))
        score, chosen = m.router(h).topk(2)
        return m.b(h + (m.bias[chosen] * score[..., None]).sum(-2))

    layers = {"a": L(6, 9), "router": L(9, 4), "bias": nn.Parameter(torch.zeros(4, 9)), "b": L(9, 3)}
    model = case(randomise(Named(forward, layers).eval(), 0), (normal(2, 5, 6),))
    found = fuse(model.side, [model.side], model.data, features=features)
    assert model.change(found.weights) < ROUNDING
    lost = [note for note in found.alignments[0].notes if "what comes out of this step is not followed" in note]
    assert len(lost) == len(set(lost)) > 0
