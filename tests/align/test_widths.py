"""Unequal widths: units split into several and merged back give the same function, in both directions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from align_copies import Case, case, fuse, split
from any_width import NARROW, WIDER, Small, drawn
from otfuse.core.space import Role
from otfuse.flow.proof.act import act, draw
from otfuse.testing import small

ROUNDING = 2e-6


def both(narrow, wide, inputs):
    """The narrow model, and the wide one that computes the same, its units in another order."""
    ours, theirs = case(drawn(narrow), inputs), case(drawn(wide), inputs)
    made = split(ours.side, theirs.side)
    kinds = ("stream", "units")
    spaces = [s for s in made.graph.free if s.kind in kinds]
    made = replace(made, weights=act([draw(s, 1) for s in spaces], made.weights))
    same = Case(made, theirs.data)
    assert max((a - b).norm() / b.norm() for a, b in zip(same.outputs(), ours.outputs(), strict=True)) < ROUNDING
    return ours, same


@pytest.fixture(scope="module")
def pairs():
    made = {}
    inputs = {"x": torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))}

    def pair(name):
        if name not in made:
            made[name] = both(Small(**NARROW), Small(**(NARROW | WIDER[name])), inputs)
        return made[name]

    return pair


@pytest.mark.parametrize("query_key", ["separate", "tied", "heads"])
@pytest.mark.parametrize("features", ["activations", "weights"])
@pytest.mark.parametrize("name", WIDER)
def test_split_units_merge_back(pairs, name, features, query_key):
    narrow, wide = pairs(name)
    for anchor, source in ((narrow, wide), (wide, narrow)):
        for mix in (None, (0.0, 1.0)):
            found = fuse(anchor.side, [source.side], narrow.data, features=features, query_key=query_key, mix=mix)
            assert anchor.change(found.weights) < ROUNDING


@pytest.mark.parametrize("name", ["stream", "MLP", "three times"])
def test_the_published_reading_is_too_large_on_the_writing_side(pairs, name):
    narrow, wide = pairs(name)
    found = fuse(narrow.side, [wide.side], narrow.data, unequal="published", mix=(0.0, 1.0))
    for space in narrow.side.graph.free:
        times = next(s.size for s in wide.side.graph.free if s.id == space.id) / space.size
        if space.kind not in ("stream", "units") or times == 1:
            continue
        for member in space.members:
            ours, theirs = (w[member.tensor] for w in (narrow.side.weights, found.weights))
            if member.role is not Role.CONSUMES and ours.ndim == 1:
                assert torch.allclose(theirs, times * ours, rtol=1e-5, atol=1e-6)
    assert narrow.change(found.weights) > 0.1


TEXT = {"vocabulary": 40, "length": 8, "layers": 1}
IDS = {"input_ids": torch.arange(4, 12).repeat(2, 1)}
PIXELS = {"pixel_values": torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
LARGE, SMALL = {"hidden": 24, "heads": 3, "mlp": 30}, {"hidden": 16, "heads": 2, "mlp": 20}  # head size 8 in both
KINDS = {
    "vit": (lambda **s: small.image_classifier(image_size=8, layers=1, **s), PIXELS),
    "bert": (lambda **s: small.masked_lm(**TEXT, **s), IDS),
    "gpt2": (lambda **s: small.causal_lm(**TEXT, **s), IDS),
    "llama": (lambda groups=1, **s: small.grouped_lm(**TEXT, groups=groups, **s), IDS),
}


@pytest.fixture(scope="module")
def models():
    made = {}

    def model(kind, **sizes):
        key = kind, *sizes.values()
        if key not in made:
            build, inputs = KINDS[kind]
            made[key] = case(drawn(build(**sizes), seed=len(made)), inputs)
        return made[key]

    return model


@pytest.mark.parametrize("unequal", ["balanced", "published"])
@pytest.mark.parametrize("query_key", ["separate", "tied", "heads"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_widths_fuse_in_both_directions(models, kind, query_key, unequal):
    one, other = models(kind, **LARGE), models(kind, **SMALL)
    for anchor, source in ((one, other), (other, one)):
        for features in ("activations", "weights"):
            found = fuse(
                anchor.side, [source.side], anchor.data, features=features, query_key=query_key, unequal=unequal
            )
            assert {n: t.shape for n, t in found.weights.items()} == {
                n: anchor.side.weights.shape(n) for n in anchor.side.weights.alike
            }
            assert all(t.isfinite().all() for t in anchor.outputs(found.weights))
            assert anchor.change(found.weights) > 1e-3


@pytest.mark.parametrize("kind", ["vit", "gpt2"])
def test_another_head_size(models, kind):
    one, other = models(kind, hidden=16, heads=2, mlp=20), models(kind, hidden=16, heads=4, mlp=20)
    for query_key in ("separate", "tied", "heads"):
        for anchor, source in ((one, other), (other, one)):
            found = fuse(anchor.side, [source.side], anchor.data, query_key=query_key)
            assert all(t.isfinite().all() for t in anchor.outputs(found.weights))


@pytest.mark.parametrize("query_key", ["separate", "tied", "heads"])
def test_heads_grouped_in_one_model_only(models, query_key):
    one, other = models("llama", hidden=16, heads=4, mlp=20), models("llama", hidden=16, heads=4, mlp=20, groups=4)
    for anchor, source in ((one, other), (other, one)):
        found = fuse(anchor.side, [source.side], anchor.data, query_key=query_key)
        assert all(t.isfinite().all() for t in anchor.outputs(found.weights))
