"""Copies of models that read images or sounds among words, with the units of every part in another order, come back."""

from __future__ import annotations

import pytest

import otfuse
from align_copies import UNITS, Case, fuse
from otfuse.core.dataset import Dataset
from otfuse.core.graph import NodeKind
from otfuse.errors import DataError
from otfuse.fusion.sides import traced
from otfuse.io.parents import given
from otfuse.program.inputs import resized
from otfuse.testing.examples import example

ROUNDING = 2e-6
MODELS = [
    "llava", "llava_next", "gemma3", "paligemma", "idefics3", "smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen2_audio", "internvl",
    "kosmos2", "blip2", "blip",
]  # fmt: skip


def _parent(name):
    model, inputs = example(name).build(0)
    return given(model, name), inputs


@pytest.fixture(scope="module", params=MODELS)
def copies(request):
    return Case(traced(*_parent(request.param)), None)


@pytest.mark.parametrize(("kinds", "query_key"), [(UNITS, "separate"), (None, "heads")])
def test_every_free_space_is_found_from_weights(copies, kinds, query_key):
    moved = copies.permuted(kinds)
    plain = fuse(copies.side, [moved], None, scheme="average")
    assert copies.change(plain.weights) > 0.1
    found = fuse(copies.side, [moved], None, features="weights", query_key=query_key)
    assert copies.change(found.weights) < ROUNDING
    assert not [note for note in found.alignments[0].notes if "not followed" in note]


def test_images_are_a_branch_of_the_stream_of_words():
    graph = traced(*_parent("llava")).graph
    text = next(s.id for s in graph.spaces if s.kind == "stream" and any("embed_tokens" in m.tensor for m in s.members))
    first = next(n for n in graph.nodes if n.kind is NodeKind.JUNCTION and text in n.written_spaces)
    written = {r.role: graph.nodes[r.node].name for r in first.readings}
    assert written["skip"].endswith("embed_tokens")
    assert written["branch"].endswith("multi_modal_projector.linear_2")


@pytest.fixture(scope="module")
def counted():
    """Nine images of 24 patches, and of 20 patches, among words."""
    model, inputs = example("qwen2_vl").build(0)
    arrays = {name: value.numpy() for name, value in resized(inputs, 9).items()}
    return model, arrays


def test_patches_counted_by_a_grid_are_cut_by_image(counted):
    model, arrays = counted
    other, _ = example("qwen2_vl").build(1)
    fused = otfuse.fuse([model, other], "otfusion-acts", data=arrays, batch_size=4)
    assert fused.report.gate["error"] < 1e-4


def test_images_that_lead_the_model_another_way_are_refused(counted):
    model, arrays = counted
    other, _ = example("qwen2_vl").build(1)
    grids = arrays["image_grid_thw"].copy()
    grids[7] = [1, 6, 4]
    with pytest.raises(DataError, match=r"^data: examples 6 to 8 lead the model another way .* image_grid_thw"):
        otfuse.fuse([model, other], "otfusion-acts", data=arrays | {"image_grid_thw": grids}, batch_size=4)


def test_rows_are_taken_with_their_examples():
    import numpy as np

    rows = np.arange(12).reshape(6, 2)
    data = Dataset(
        {"input_ids": np.arange(3)[:, None], "pixel_values": rows}, counts={"pixel_values": np.array([1, 3, 2])}
    )
    part = data.take(np.array([2, 0]))
    assert part.size == 2
    assert part.inputs["pixel_values"].tolist() == rows[[4, 5, 0]].tolist()
    assert part.counts["pixel_values"].tolist() == [2, 1]
    assert [len(b.inputs["pixel_values"]) for b in data.batches(2)] == [4, 2]
