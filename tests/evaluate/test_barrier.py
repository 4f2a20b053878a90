"""The straight line between two models: its ends, its middle, and what is called its barrier."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from align_copies import case
from otfuse import fuse
from otfuse.core.dataset import Dataset
from otfuse.errors import MatchError, UsageError
from otfuse.evaluate.barrier import Line, along
from otfuse.evaluate.metrics import Score, evaluate
from tiny import build

IMAGES = torch.from_numpy(np.random.default_rng(4).normal(size=(30, 1, 8, 8)).astype(np.float32))
with torch.no_grad():  # labels that the anchor knows, so that there is something to lose
    DATA = Dataset({"pixel_values": IMAGES.numpy()}, build("vit", 0)(IMAGES).logits.argmax(1).numpy())
EMD = {"features": "weights", "solver": "emd", "query_key": "heads"}
ENDS = ({"weights": [1.0, 0.0]}, {"weights": [0.0, 1.0]})


@pytest.fixture(scope="module")
def pair():
    """An anchor, and its copy with a little noise, all of whose free units are permuted; in float64."""
    anchor = build("vit", 0).double()
    source = copy.deepcopy(anchor)
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in source.parameters():
            p += 0.02 * p.std().nan_to_num(0.1) * torch.randn(p.shape, generator=chance, dtype=p.dtype)
    source.load_state_dict(dict(case(source, {"pixel_values": IMAGES.double()}).permuted(kinds=None).weights))
    return anchor, source


def ends(pair, recipe):
    return [fuse(pair, recipe, options=options, verify=False).model for options in ENDS]


def line_of(*losses):
    at = tuple(i / (len(losses) - 1) for i in range(len(losses)))
    return Line(at, tuple(Score(1, loss, None, None) for loss in losses))


def test_the_barrier_is_the_largest_gap_above_what_joins_the_ends():
    line = line_of(1.0, 2.5, 2.25, 2.0, 3.0)
    assert line.gaps == (0.0, 1.0, 0.25, -0.5, 0.0)
    assert (line.barrier, line.highest, line.middle) == (1.0, 0.25, 0.25)
    assert (line_of(1.0, 0.0, 1.0).barrier, line_of(1.0, 0.0, 1.0).middle) == (0.0, -1.0)
    assert line_of(1.0, 2.0, 3.0, 4.0).middle is None


def test_the_plain_line_joins_the_parents_through_their_average(pair):
    before = [{name: t.clone() for name, t in model.state_dict().items()} for model in pair]
    line = along(*pair, DATA, points=5)
    assert line.at == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert [line.scores[0], line.scores[-1]] == [evaluate(model, DATA) for model in pair]
    assert line.scores[2] == evaluate(fuse(pair, "vanilla").model, DATA)
    assert line.scores[1] == evaluate(fuse(pair, "vanilla", options={"weights": [0.75, 0.25]}).model, DATA)
    assert line.middle > 0.05
    for model, old in zip(pair, before, strict=True):
        assert all(torch.equal(t, old[name]) for name, t in model.state_dict().items())


def test_exact_maps_carry_the_source_to_the_end_with_its_own_loss(pair):
    anchor, carried = ends(pair, {"scheme": "otfusion", "otfusion": EMD})
    line, parents = along(anchor, carried, DATA, points=3), [evaluate(model, DATA) for model in pair]
    assert parents[0].loss != pytest.approx(parents[1].loss, abs=1e-4), "else the test could not tell them apart"
    for score, own in zip((line.scores[0], line.scores[-1]), parents, strict=True):
        assert (score.loss, score.accuracy) == (pytest.approx(own.loss, abs=1e-10), own.accuracy)
    assert line.barrier < 0.01 < along(*pair, DATA, points=3).barrier


def test_what_makes_no_line_is_refused(pair):
    with pytest.raises(UsageError, match=r"--points 2: give 3 or more"):
        along(*pair, DATA, points=2)
    with pytest.raises(MatchError, match=r"no line joins these two models: '\S+' is not in both, or of another shape"):
        along(pair[0], build("vit", 0, mlp=20), DATA)
