"""Made-up inputs of models that read images or sounds: they stand where their tokens do, and reach every part."""

from __future__ import annotations

import pytest
import torch

import otfuse
from otfuse.core.graph import FlowGraph, unreached
from otfuse.program.inputs import example_inputs, examples, resized
from otfuse.testing import media
from otfuse.testing.examples import EXAMPLES, example

NAMES = [entry.name for entry in media.EXAMPLES]
IDLE = {  # what these models never use of their towers
    "llava": ["model.vision_tower.encoder.layers.1 (16 tensors)", "model.vision_tower.post_layernorm (2 tensors)"],
    "llava_next": ["model.vision_tower.encoder.layers.1 (16 tensors)", "model.vision_tower.post_layernorm (2 tensors)"],
    "gemma3": ["model.vision_tower.head (11 tensors)"],
    "paligemma": ["model.vision_tower.head (11 tensors)"],
}


@pytest.mark.parametrize("name", NAMES)
def test_they_are_those_of_the_example(name):
    model, given = EXAMPLES[name].build(0)
    made = example_inputs(model)
    places = {n: len(v) for n, v in made.items()}
    assert places == {n: len(v) for n, v in given.items()}
    stood = [v.get("image_embeds_position_mask", v["input_ids"] == media.PLACE).sum(1).tolist() for v in (made, given)]
    assert stood[0] == stood[1]


@pytest.mark.parametrize("name", ["llava", "gemma3", "idefics3", "internvl", "blip2"])
def test_they_reach_every_part_that_the_model_uses(name):
    assert unreached(otfuse.trace(EXAMPLES[name].build(0)[0])) == IDLE.get(name, [])


def test_text_alone_leaves_the_tower_and_the_projector():
    model, inputs = example("llava").build(0)
    graph = otfuse.trace(model, {"input_ids": inputs["input_ids"].clamp(max=media.PLACE - 1)})
    assert unreached(graph) == ["model.vision_tower (39 tensors)", "model.multi_modal_projector (4 tensors)"]
    assert graph.notes == (
        "on these inputs no prediction depends on model.vision_tower (39 tensors), model.multi_modal_projector (4 tensors)",
    )


def test_tensors_without_a_module_of_their_own_are_named():
    names = ("a.weight", "a.bias", "b.c.weight", "b.d.weight", "token")
    graph = FlowGraph((), (), dict.fromkeys(names, (2, 2)), unread=("a.bias", "b.c.weight", "token"))
    assert unreached(graph) == ["a.bias", "b.c (1 tensor)", "token"]


def test_a_count_needs_no_numbers():
    with torch.device("meta"):
        model = EXAMPLES["llava"].module()
    made = example_inputs(model)
    assert (made["input_ids"] == media.PLACE).sum(1).tolist() == [16, 16]


def test_more_examples_have_as_many_patches_each():
    _model, given = example("qwen2_vl").build(0)
    given["image_grid_thw"] = torch.tensor([[1, 4, 6], [1, 4, 4]])
    given["pixel_values"] = given["pixel_values"][:40]
    found = resized(given, 3)
    assert examples(found) == 3
    assert torch.equal(found["pixel_values"][40:], given["pixel_values"][:24])
    assert found["image_grid_thw"].tolist() == [[1, 4, 6], [1, 4, 4], [1, 4, 6]]
