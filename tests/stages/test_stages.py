"""Schemes of several stages, from Python: what is kept of the anchor, what the guard undoes and tells, what is refused."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

import otfuse
import tiny
from otfuse.align import canonical
from otfuse.core.recipe import read
from otfuse.errors import DataError, DivergedError, MatchError, SolveError, UnequalError
from otfuse.pipeline import DEFAULT_RECIPE
from otfuse.stages import order, works
from otfuse.stages.order import Order

IMAGES = {"pixel_values": np.random.default_rng(0).normal(size=(30, 1, 8, 8)).astype(np.float32)}
MANY = {"pixel_values": np.random.default_rng(1).normal(size=(120, 1, 8, 8)).astype(np.float32)}
TOKENS = np.random.default_rng(0).integers(5, tiny.WORDS["vocabulary"], (24, tiny.LENGTH))
SHORT = {
    "distilled.start": "plain",
    "distilled.steps": 6,
    "distilled.learning_rate": 1e-3,
    "distilled.batch_size": 8,
    "calibrated.ridge": 0.01,
}


def fuse(models, data, recipe="distilled", **options):
    return otfuse.fuse(models, recipe, data=data, options=SHORT | options, verify=False)


def parents(kind, **sizes):
    return [tiny.build(kind, seed, layers=1, **sizes) for seed in (0, 1)]


def figures(made):
    return {row.name: row.figure for row in made.report.compared}


def hostile(_run, weights):
    """A stage that goes wrong."""
    return {name: -3 * tensor for name, tensor in weights.items()}


@pytest.fixture(scope="module")
def vits():
    return parents("vit")


def test_distilling_comes_nearer_to_what_the_parents_predict_and_changes_no_parent(vits):
    originals = [copy.deepcopy(model.state_dict()) for model in vits]
    made = fuse(vits, MANY, **{"distilled.steps": 40, "distilled.learning_rate": "auto"})
    assert type(made.model) is type(vits[0])
    assert all(
        torch.equal(a[n], b[n]) for a, b in zip(originals, [m.state_dict() for m in vits], strict=True) for n in a
    )
    note = next(note for note in made.report.notes if note.startswith("distilled for 40 steps of 8 "))
    before, after = (float(number) for number in re.search(r"inputs (\S+) before, (\S+) at step", note).groups())
    assert after < 0.6 * before
    assert "chosen on held-back inputs" in note
    rows = made.report.compared
    assert [row.kind for row in rows] == ["parent", "parent", "stage", "stage"]
    assert [row.name for row in rows[2:]] == ["plain", "distilled"]


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_ties_types_and_masked_tokens(kind):
    models = [m.bfloat16() for m in parents(kind)]
    data = {"input_ids": TOKENS} | ({"decoder_input_ids": TOKENS[:, :5]} if kind == "t5" else {})
    made = fuse(models, data)
    assert {p.dtype for p in made.model.parameters()} == {torch.bfloat16}
    assert made.model.get_output_embeddings().weight is made.model.get_input_embeddings().weight
    assert figures(made)["distilled"] != figures(made)["plain"]
    assert all(p.isfinite().all() for p in made.model.parameters())


def test_padding_and_hidden_tokens_decide_what_is_learned(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setitem(works.STAGES, "distilled", lambda run, weights: seen.update(run=run.targets, data=run.inputs))
    mask = np.ones_like(TOKENS)
    mask[:, 9:] = 0
    fuse(parents("gpt2"), {"input_ids": TOKENS, "attention_mask": mask})
    assert np.array_equal(seen["run"].places, mask != 0)
    folders = [tiny.save(model, tmp_path / str(i)) for i, model in enumerate(parents("bert"))]  # with a tokenizer
    fuse(folders, {"input_ids": TOKENS, "attention_mask": mask})
    assert np.array_equal(seen["run"].places, seen["data"].inputs["input_ids"] == 4)
    assert set(seen["run"].places.sum(1)) == {1}, "15 % of nine"
    fuse(parents("gpt2"), {"input_ids": TOKENS})
    assert seen["run"].places is None


class Values(nn.Module):
    """Regression, with a layer that nothing reads."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b, self.idle = nn.Linear(6, 9), nn.Linear(9, 1), nn.Linear(3, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))[:, 0]


def test_values_are_learned_by_squared_error_and_what_nothing_reads_is_the_anchors():
    models, x = [Values(0), Values(1)], np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    made = fuse(models, {"x": x}, **{"distilled.steps": 150, "distilled.learning_rate": 0.01})
    assert made.report.compared_by == "squared error against the parents' mean output"
    assert figures(made)["distilled"] < 0.2 * figures(made)["plain"]
    assert torch.equal(made.model.idle.weight, models[0].idle.weight)
    with torch.no_grad():
        mean = (models[0](torch.from_numpy(x)) + models[1](torch.from_numpy(x))) / 2
        assert (made.model(torch.from_numpy(x)) - mean).square().mean() < 0.3 * figures(made)["plain"]


def test_the_anchor_is_a_start_of_its_own(vits):
    made = fuse(vits, IMAGES, **{"distilled.start": "anchor"})
    ours = [row for row in made.report.compared if row.name in ("anchor", f"{type(vits[0]).__name__} 0")]
    assert ours[0].figure == ours[1].figure


def test_auto_undoes_what_went_wrong_and_goes_on_from_before(vits, monkeypatch):
    aligned = otfuse.fuse(vits, "aligned", verify=False).model.state_dict()
    diverged = lambda *_: (_ for _ in ()).throw(DivergedError("the loss is not finite at step 1"))  # noqa: E731
    monkeypatch.setitem(works.STAGES, "calibrated", hostile)
    monkeypatch.setitem(works.STAGES, "distilled", diverged)
    made = fuse(vits, IMAGES, "auto", **{"auto.steps": 5})
    rows = made.report.compared[2:]
    assert [(row.name, row.kept) for row in rows] == [("aligned", True), ("calibrated", False), ("distilled", False)]
    for stage in ("calibrated", "distilled"):
        assert any(f"{stage} was undone" in note for note in made.report.notes)
    assert all(torch.equal(made.model.state_dict()[n], tensor) for n, tensor in aligned.items())


def test_a_clearly_better_parent_is_told_with_figures_and_the_result_still_given(vits, monkeypatch):
    monkeypatch.setitem(works.STAGES, "distilled", hostile)
    made = fuse(vits, MANY)
    assert made.report.compared[-1].kept, "only auto undoes"
    assert "100 of 120 inputs were drawn: there is no time or step for more" in made.report.notes
    (told,) = [note for note in made.report.notes if "alone is clearly better" in note]
    better = min(made.report.compared[:2], key=lambda row: row.figure)
    assert f"{better.name} alone" in told
    assert f"{better.figure:.4f} against {made.report.compared[-1].figure:.4f}" in told
    same = fuse([vits[0], copy.deepcopy(vits[0])], IMAGES, **{"distilled.learning_rate": 1e-6})
    assert not any("clearly" in note for note in same.report.notes), "nobody is better than its own copy"


def test_auto_trains_a_parent_that_is_far_nearer_than_what_was_made_of_all(vits, monkeypatch):
    monkeypatch.setitem(works.STAGES, "calibrated", hostile)  # undone: the average is far from both
    options = {"auto.steps": 1, "weights": [0.02, 0.98], "distilled.learning_rate": 1e-12}
    made = fuse(vits, MANY, "auto", **options)
    assert any(
        note.startswith("distilled from ViTForImageClassification 1: its divergence") for note in made.report.notes
    )
    for name, tensor in vits[1].state_dict().items():
        torch.testing.assert_close(made.model.state_dict()[name], tensor, atol=1e-6, rtol=0)


def test_auto_without_inputs_says_what_would_help(vits):
    assert DEFAULT_RECIPE == "auto"
    made = otfuse.fuse(vits)
    assert made.report.recipe.scheme == order.WITHOUT_DATA == "aligned"
    assert any("100 or more unlabelled images" in note for note in made.report.notes)
    given = read({"scheme": "auto", "weights": [0.3, 0.7], "aligned": {"groups": "permutation"}})
    assert order.without_data(given) == read(given, {"scheme": "aligned"})


def test_no_time_leaves_what_is_calibrated(vits):
    made = fuse(vits, IMAGES, "auto", **{"auto.budget": "0s"})
    assert any(note.startswith("nothing was distilled") for note in made.report.notes)
    assert [row.name for row in made.report.compared[2:]] == ["aligned", "calibrated"]


def test_three_parents_and_their_weights(vits):
    made = fuse([*vits, tiny.build("vit", 2, layers=1)], IMAGES, weights=[0.5, 0.25, 0.25])
    assert made.report.weights == (0.5, 0.25, 0.25)
    assert len(made.report.compared) == 5


@pytest.mark.parametrize(
    ("recipe", "data", "error", "sentence"),
    [
        ("distilled", None, DataError, "recipe distilled learns from unlabelled inputs and no data was given"),
        ("distilled", 1, DataError, "recipe distilled learns what the parents predict, and one example is given"),
        ("auto", 0, DataError, "recipe auto learns what the parents predict, and all 30 examples are the same"),
    ],
)
def test_what_cannot_be_learned_from_is_one_sentence(vits, recipe, data, error, sentence):
    rows = slice(0, data) if data else np.zeros(30, np.int64)
    given = None if data is None else {"pixel_values": IMAGES["pixel_values"][rows]}
    with pytest.raises(error, match=sentence) as caught:
        otfuse.fuse(vits, recipe, data=given)
    assert "\n" not in str(caught.value)


def test_parents_that_cannot_be_averaged_or_give_nan_are_named(vits):
    other = tiny.small.image_classifier(image_size=8, patch=4, labels=4, **(tiny.SIZES | {"layers": 1}))
    with pytest.raises(MatchError, match=r"cannot be (fused|averaged)"):
        fuse([vits[0], other], IMAGES)
    models = [nn.Sequential(nn.Embedding(9, 6), nn.Tanh(), nn.Linear(6, 4)) for _ in range(2)]
    models[1][0].weight.data[7] = torch.nan
    tokens = np.random.default_rng(0).integers(0, 7, (24, 5))
    tokens[17, 3] = 7
    sentence = (
        r"^Sequential 1: what it predicts for example 17 of the data is not finite; leave that example out, or check"
    )
    with pytest.raises(DataError, match=sentence):
        fuse(models, {"input": tokens})
    with pytest.raises(SolveError, match=r"^aligned: 0.weight of source 1 holds numbers that are not finite; check"):
        fuse(models, {"input": tokens}, "auto")


def test_orders_by_recipe():
    chosen = read({"scheme": "distilled", "distilled": {"start": "calibrated"}, "calibrated": {"start": "refined"}})
    assert order.order(chosen).stages == ("refined", "calibrated", "distilled")
    assert order.order(chosen).start.scheme == "aligned"
    assert order.order(read({"scheme": "auto"})).stages == ("calibrated", "distilled")
    acts = order.order(read({"scheme": "calibrated", "calibrated": {"start": "aligned-acts"}}))
    assert (acts.name, acts.start.aligned.features, acts.stages) == ("aligned-acts", "activations", ("calibrated",))
    anchor = read({"scheme": "distilled", "distilled": {"start": "anchor"}})
    assert order.order(anchor) == Order(None, "anchor", ("distilled",))


def test_auto_trains_a_parent_where_nothing_can_be_calibrated(vits, monkeypatch):
    def refused(*_):
        raise UnequalError("no map joins these")

    monkeypatch.setattr(canonical, "Frame", refused)
    wider = tiny.build("vit", 1, layers=1, hidden=24)
    options = {"auto.steps": 1, "distilled.learning_rate": 1e-12}
    made = fuse([vits[0], wider], MANY, "auto", **options)
    assert any(
        note.startswith("nothing was calibrated: the models differ in operators or in sizes")
        for note in made.report.notes
    )
    assert any(note.startswith("distilled from ViTForImageClassification 0: its") for note in made.report.notes)
    for name, tensor in vits[0].state_dict().items():
        torch.testing.assert_close(made.model.state_dict()[name], tensor, atol=1e-6, rtol=0)
