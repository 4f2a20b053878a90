"""A model fused with a permuted copy of itself stays itself: the permutation is found, and carried through everything."""

from __future__ import annotations

import pytest

from align_copies import UNITS, case, fuse
from otfuse.testing.examples import example

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


@pytest.mark.parametrize("features", ["activations", "weights"])
@pytest.mark.parametrize("name", HEADS)
def test_heads_query_heads_and_units_inside(built, name, features):
    model = built(name)
    moved = model.permuted(None)
    found = fuse(model.side, [moved], model.data, features=features, query_key="heads")
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
