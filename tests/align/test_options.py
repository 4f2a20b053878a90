"""Every option of the published method, on an image model and on two of text."""

from __future__ import annotations

import math

import pytest
import torch

from align_copies import case, fuse
from otfuse.align.pair import Pair
from otfuse.align.structure import needed_nodes
from otfuse.core import recipe as recipes
from otfuse.core.dataset import Dataset
from otfuse.errors import DataError, MatchError, RecipeError
from otfuse.fusion.choose import CANDIDATES, best_regulariser, searched
from otfuse.fusion.sides import traced
from otfuse.io.parents import given
from otfuse.measure.observe import RowFilter
from otfuse.measure.probe import first_batch, pair_moments
from otfuse.testing import small
from otfuse.testing.examples import example

OPTIONS = [
    *({"transform": t} for t in ("standardize", "center", "normalize", "none")),
    *({"cost": c} for c in ("sqeuclidean", "cosine", "correlation")),
    *({"cost_scale": c, "solver": "sinkhorn", "regulariser": 2.0} for c in ("mean", "median", "none")),
    *({"residual": r} for r in ("branch", "skip", "identity", "mean", "scalar", "matrix")),
    *({"query_key": q} for q in ("separate", "tied", "heads")),
    *({"features": "weights", "transform": t} for t in ("unit", "none")),
    {"features": "weights", "residual": "matrix"},
    {"classifier": "anchor"},
    {"unequal": "published"},
    {"unread": "compare"},
]
KINDS = ["hf_vit", "bert_classifier", "gpt2"]


@pytest.fixture(scope="module")
def pairs():
    made = {}

    def pair(name):
        if name not in made:
            made[name] = case(*example(name).build(0)), case(*example(name).build(1)).side
        return made[name]

    return pair


def differ(one, other):
    return {n for n in one if not torch.allclose(one[n], other[n], rtol=1e-5, atol=1e-6)}


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(map(str, o.values())))
@pytest.mark.parametrize("kind", KINDS)
def test_every_option_fuses(pairs, kind, options):
    anchor, source = pairs(kind)
    found = fuse(anchor.side, [source], anchor.data, **({"solver": "sinkhorn", "regulariser": 0.1} | options))
    assert all(s.converged for s in found.alignments[0].solved)
    assert all(t.isfinite().all() for t in anchor.outputs(found.weights))
    assert anchor.change(found.weights) > 1e-3


@pytest.mark.parametrize("options", [{"transform": "center"}, {"cost": "cosine"}, {"residual": "skip"}, {"query_key": "tied"},
                                     {"cost_scale": "mean"}, {"features": "weights"}, {"classifier": "anchor"}],
                         ids=str)  # fmt: skip
def test_an_option_changes_the_result(pairs, options):
    anchor, source = pairs("hf_vit")
    plain = {"solver": "sinkhorn", "regulariser": 0.1}
    found = [fuse(anchor.side, [source], anchor.data, **(plain | o)).weights for o in ({}, options)]
    assert differ(*found)


def test_the_anchors_classifier_is_kept(pairs):
    anchor, source = pairs("hf_vit")
    found = fuse(anchor.side, [source], anchor.data, classifier="anchor").weights
    kept = {n for n, t in found.items() if t.equal(anchor.side.weights[n])}
    assert kept == {n for n in found if n.startswith("classifier")}


def test_the_anchors_classifier_needs_equal_widths(pairs):
    sizes = {"image_size": 8, "layers": 1, "heads": 2, "mlp": 20}
    inputs = {"pixel_values": torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
    anchor, wider = (case(small.image_classifier(hidden=h, **sizes), inputs) for h in (16, 24))
    with pytest.raises(MatchError, match="must keep their order and cannot be matched; give models with equal sizes"):
        fuse(anchor.side, [wider.side], anchor.data, classifier="anchor")


def test_unread_tokens_matter_behind_the_last_attention_only(pairs):
    anchor, source = pairs("hf_vit")
    found = [fuse(anchor.side, [source], anchor.data, unread=u, residual="branch").weights for u in ("skip", "compare")]
    changed = differ(*found)
    last = max(int(n.split(".")[2]) for n in found[0] if ".layers." in n)
    early = [n for n in changed if ".layers." in n and int(n.split(".")[2]) < last]
    assert not early
    before = ("k_proj", "v_proj", "layernorm_before")
    assert not [n for n in changed if any(part in n for part in before)]
    assert [n for n in changed if "mlp" in n]


@pytest.mark.parametrize(("grid", "layers"), [(2, 3), (4, 1)])
def test_token_filters_on_any_grid_and_depth(grid, layers):
    build = {"image_size": 4 * grid, "patch": 4, "hidden": 16, "heads": 2, "mlp": 20, "layers": layers}
    inputs = {"pixel_values": torch.randn(2, 1, 4 * grid, 4 * grid, generator=torch.Generator().manual_seed(0))}
    anchor, source = (case(small.image_classifier(seed=seed, **build), inputs) for seed in (0, 1))
    weights = {t: fuse(anchor.side, [source.side], anchor.data, tokens=t).weights
               for t in ("all", "cls", f"window:{grid}", f"window:{grid // 2}")}  # fmt: skip
    assert not differ(weights["all"], weights[f"window:{grid}"])
    assert differ(weights["all"], weights["cls"])
    assert differ(weights["cls"], weights[f"window:{grid // 2}"])
    with pytest.raises(DataError, match=f"the grid has {grid} x {grid} patches; give a smaller window"):
        fuse(anchor.side, [source.side], anchor.data, tokens=f"window:{grid + 1}")


def test_token_filters_need_a_class_token(pairs):
    anchor, source = pairs("gpt2")
    for tokens in ("cls", "window:1"):
        with pytest.raises(DataError, match="no class token beside a grid of patches; use tokens: all"):
            fuse(anchor.side, [source], anchor.data, tokens=tokens)


@pytest.mark.parametrize("kind", [*KINDS, "torch_encoder_first", "vit_bert"])
def test_a_last_batch_that_is_not_full_changes_no_moment(kind):
    """A batch of 16 and another of 8, of which 4 are real: the moments of both programs over the same 20 examples agree."""
    model, inputs = example(kind).build(0)
    whole = case(model, inputs, rows=20)
    found = []
    for size in (20, 16, 8):
        side = traced(given(model, "model"), first_batch(model, whole.data.take(slice(0, size)), size))
        nodes = needed_nodes(Pair(side, side))
        assert nodes
        found.append(pair_moments(side, side, whole.data, nodes, RowFilter("all", "skip")))
    fixed = {i for i, m in found[0].items() if m.rows != found[1][i].rows}  # places: once per batch, always the same
    for index, wanted in found[0].items():
        for other in found[1:]:
            assert torch.allclose(other[index].anchor_mean, wanted.anchor_mean, rtol=1e-4, atol=1e-5)
            if index not in fixed:
                assert other[index].rows == wanted.rows
                assert torch.allclose(other[index].cross, wanted.cross, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_moments_do_not_depend_on_threads_nor_on_what_is_not_worked_out(kind, monkeypatch):
    """One thread after another, two at once, and everything worked out, read or not: the same numbers."""
    model, inputs = example(kind).build(0)
    found, threads, measured = [], torch.get_num_threads(), case(model, inputs, rows=20)
    nodes = needed_nodes(Pair(measured.side, measured.side))
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(pair_moments(measured.side, measured.side, measured.data, nodes, RowFilter("all", "skip")))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(RowFilter, "wanted", lambda *_: None)
    found.append(pair_moments(measured.side, measured.side, measured.data, nodes, RowFilter("all", "skip")))
    for index, first in found[0].items():
        for other in found[1:]:
            assert other[index].rows == first.rows
            assert torch.allclose(other[index].cross, first.cross, rtol=1e-5, atol=1e-5)


def test_auto_takes_the_best_of_its_candidates(pairs):
    anchor, source = pairs("hf_vit")

    def with_value(value):
        return fuse(anchor.side, [source], anchor.data, solver="sinkhorn", regulariser=value).weights

    best, tried = best_regulariser([anchor.side, source], (0.5, 0.5), anchor.data, with_value)
    assert set(tried) >= set(CANDIDATES)
    model, _ = example("hf_vit").build(0)
    parents = [_predictions(model, weights, anchor.data) for weights in (anchor.side.weights, source.weights)]
    target = sum(p.exp() for p in parents) / 2
    gaps = {}
    for value in tried:
        made = _predictions(model, with_value(value), anchor.data)
        gaps[value] = float((target * (target.log() - made)).sum(-1).mean())
    assert gaps == pytest.approx(tried, rel=1e-4, abs=1e-6)
    assert best == min(gaps, key=gaps.__getitem__)


@pytest.mark.parametrize(
    ("least", "found"), [(0.09, 0.08), (0.0006, 0.0005), (1e-9, 0.000125), (0.0018, 0.002), (2.1, 2.0), (1e9, 8.0)]
)
def test_auto_goes_on_beyond_its_candidates_until_it_gets_worse(least, found):
    best, tried = searched(lambda value: abs(math.log(value / least)))
    assert best == pytest.approx(found)
    assert min(tried) < best < max(tried) or not 1e-9 < least < 1e9, "a worse one on either side, but for the limits"


def _predictions(model, weights, data: Dataset):
    inputs = {n: torch.from_numpy(v) for n, v in data.inputs.items()}
    with torch.no_grad():
        return torch.func.functional_call(model, dict(weights), (), inputs).logits.double().log_softmax(-1)


def test_the_recipe_refuses_a_transform_of_the_other_features():
    with pytest.raises(RecipeError, match="does not go with features"):
        recipes.read({"scheme": "otfusion", "otfusion": {"features": "weights", "transform": "center"}})
