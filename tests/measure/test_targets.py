"""What parents predict together, and how far a model is from it: by hand, in memory and in a file, and what is refused."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch
from torch import nn

from named import Named
from otfuse.core.dataset import Dataset
from otfuse.errors import DataError, MatchError, ResourceError
from otfuse.measure import targets as kept
from otfuse.measure.probe import Side
from otfuse.measure.targets import apart, require_variety, split, together
from otfuse.program.export import export
from otfuse.program.weights import Weights

DATA = Dataset({"x": np.random.default_rng(0).normal(size=(11, 3, 5)).astype(np.float32)})


def side(seed, entries=4, forward=lambda m, x: m.head(x), rows=4, **more):
    torch.manual_seed(seed)
    model = Named(forward, {"head": nn.Linear(5, entries), **more}).eval()
    program = export(model, (torch.zeros(rows, 3, 5),))
    tensors = dict(model.named_parameters())
    return Side(program, None, Weights({name: tensors[name] for name in program.ties}))


def logits(side, rows=slice(None)):
    x = torch.from_numpy(DATA.inputs["x"][rows])
    return (x @ side.weights["head.weight"].T + side.weights["head.bias"]).double()


def test_probabilities_are_averaged_where_they_count_and_figures_are_means_over_predictions():
    places = np.random.default_rng(1).random((11, 3)) < 0.6
    places[2] = False
    one, two, made = side(1), side(2), side(3)
    found = together([one, two], (0.25, 0.75), DATA, places)
    wanted = (0.25 * logits(one).softmax(-1) + 0.75 * logits(two).softmax(-1))[torch.from_numpy(places)]
    (output,) = found.outputs
    assert output.rows.dtype == np.float16
    assert list(np.diff(output.starts)) == list(places.sum(1))
    torch.testing.assert_close(output.take(np.arange(11)).double(), wanted, atol=3e-4, rtol=0)
    log_p = logits(made)[torch.from_numpy(places)].log_softmax(-1)
    figures = apart(made, made.weights, DATA, found)
    assert figures.divergence.mean().item() == pytest.approx(
        float((wanted * (wanted.log() - log_p)).sum(-1).mean()), rel=1e-3
    )
    likeliest = log_p.gather(-1, wanted.argmax(-1, keepdim=True))
    assert figures.against.mean().item() == pytest.approx(-float(likeliest.mean()), rel=1e-5)
    assert figures.against[2] == 0
    some = apart(made, made.weights, DATA, found, np.array([1, 4, 5, 9, 10]))
    share = places[[1, 4, 5, 9, 10]].sum() / 5 / (places.sum() / 11)
    torch.testing.assert_close(some.against * share, figures.against[[1, 4, 5, 9, 10]])


@pytest.mark.parametrize("entries", [1, 4])
def test_values_are_averaged_where_outputs_are_no_distribution(entries):
    def forward(m, x):
        return {"last_hidden_state": m.head(x)} if entries > 1 else m.head(x)

    one, two = side(1, entries, forward), side(2, entries, forward)
    found = together([one, two], (0.5, 0.5), DATA)
    assert not found.distribution
    mean = (logits(one) + logits(two)) / 2
    torch.testing.assert_close(
        found.outputs[0].take(np.arange(11)).double().view(11, 3, entries), mean, atol=1e-5, rtol=0
    )
    figures = apart(one, one.weights, DATA, found)
    assert figures.against.mean().item() == pytest.approx(float((logits(one) - mean).square().mean()), rel=1e-4)
    assert torch.equal(figures.against, figures.divergence)


def test_a_file_holds_the_same_and_a_full_disk_is_one_sentence(monkeypatch):
    parents = [side(1), side(2)]
    memory = together(parents, (0.5, 0.5), DATA).outputs[0]
    monkeypatch.setattr(kept, "free_mib", lambda: 0.0)
    with together(parents, (0.5, 0.5), DATA) as found:
        assert isinstance(found.outputs[0].rows, np.memmap)
        assert np.array_equal(found.outputs[0].rows, memory.rows)
        (file,) = found.files
    assert file.closed

    class Full:
        closed = False

        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            Full.closed = True

    monkeypatch.setattr(kept.tempfile, "TemporaryFile", Full)
    with pytest.raises(ResourceError, match=r"needs more room than .* has .*No space left.*set TMPDIR"):
        together(parents, (0.5, 0.5), DATA)
    assert Full.closed


def test_what_cannot_be_averaged_is_named():
    broken = Dataset({"x": DATA.inputs["x"].copy()})
    broken.inputs["x"][6, 1, 2] = np.inf
    with pytest.raises(DataError, match=r"^b: what it predicts for example 6 of the data is not finite"):
        together([side(1), side(2)], (0.5, 0.5), broken, names=["b", "c"])
    with pytest.raises(
        MatchError, match=r"what a and b predict cannot be averaged: \[\[12, 4\]\] and \[\[12, 5\]\] values"
    ):
        together([side(1), side(2, 5)], (0.5, 0.5), DATA, names=["a", "b"])
    whole = side(1, forward=lambda m, x: m.head(x).argmax(-1))
    with pytest.raises(DataError, match="whole numbers only"):
        together([whole, whole], (0.5, 0.5), DATA)
    first = side(1, forward=lambda m, x: m.head(x).transpose(0, 1))
    with pytest.raises(DataError, match="cannot be told apart by example"):
        together([first, first], (0.5, 0.5), DATA)


def test_a_class_that_is_ruled_out_is_no_nan():
    def forward(m, x):
        return m.head(x).masked_fill(torch.tensor([False, True, False, False]), -torch.inf)

    one, two = side(1, forward=forward), side(2, forward=forward)
    found = together([one, two], (0.5, 0.5), DATA)
    figures = apart(one, one.weights, DATA, found)
    assert figures.divergence.isfinite().all()
    assert figures.divergence.mean() > 0


@pytest.mark.parametrize("size", [2, 3, 10, 400])
def test_both_parts_of_a_split_have_something_and_nothing_twice(size):
    learned, held = split(size, 0.2, 3)
    assert sorted([*learned, *held]) == list(range(size))
    assert len(held) == max(1, round(0.2 * size))
    assert len(learned) > 0
    assert np.array_equal(held, split(size, 0.2, 3)[1])


def test_inputs_without_variety_are_one_sentence():
    with pytest.raises(
        DataError, match="one example is given, which cannot be learned from and held back; give 100 or more"
    ):
        require_variety(DATA.take(slice(0, 1)), "recipe auto")
    with pytest.raises(DataError, match="all 5 examples are the same; give 100 or more that differ"):
        require_variety(DATA.take(np.zeros(5, np.int64)), "recipe auto")
    require_variety(DATA.take(slice(0, 2)), "recipe auto")
