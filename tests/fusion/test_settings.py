"""Settings that change what is computed, told from two configs; sizes that shapes tell are not repeated."""

from __future__ import annotations

import pytest
import torch
import transformers

from otfuse.errors import MatchError
from otfuse.fusion.differences import Described, described, differences

SHAPES = {f"layers.{i}.q.weight": (32, 16) for i in range(2)} | {f"layers.{i}.up.weight": (64, 16) for i in range(2)}
WIDER = {f"layers.{i}.q.weight": (48, 24) for i in range(3)} | {f"layers.{i}.up.weight": (96, 24) for i in range(3)}


def told(ours, theirs, shapes=(SHAPES, SHAPES), **options):
    notes = differences([Described("a", "M", ours, shapes[0]), Described("s", "M", theirs, shapes[1])], **options)
    return notes[0].partition(", in ")[2] if notes else ""


TOLD = {
    "window": ({"sliding_window": 4}, {"sliding_window": 16}, "sliding_window 16 (4)"),
    "experts": ({"num_experts_per_tok": 2}, {"num_experts_per_tok": 1}, "num_experts_per_tok 1 (2)"),
    "heads of one width": ({"num_attention_heads": 4}, {"num_attention_heads": 2}, "num_attention_heads 2 (4)"),
    "none against a number": ({"sliding_window": None}, {"sliding_window": 16}, "sliding_window 16 (not set)"),
    "absent against a number": ({"sliding_window": 16}, {}, "sliding_window not set (16)"),
    "list": ({"layer_types": ["full", "full"]}, {"layer_types": ["full", "slide"]}, "layer_types[1] 'slide' ('full')"),
    "list of another length": ({"layers": [1, 2]}, {"layers": [1, 2, 3]}, "layers [1, 2, 3] ([1, 2])"),
    "nested": ({"rope": {"theta": 1.0}}, {"rope": {"theta": 2.0}}, "rope.theta 2.0 (1.0)"),
    "nested in a list": ({"parts": [{"window": 1}]}, {"parts": [{"window": 2}]}, "parts[0].window 2 (1)"),
    "none against a dict": ({"rope_scaling": None}, {"rope_scaling": {"factor": 8}}, "rope_scaling {'factor': 8} (not set)"),
    "end token": ({"eos_token_id": 2}, {"eos_token_id": [2, 3]}, "eos_token_id [2, 3] (2)"),
    "scale of attention": ({"scale_attn_weights": True}, {"scale_attn_weights": False}, "scale_attn_weights False (True)"),
    "output": ({"output_stride": 16}, {"output_stride": 8}, "output_stride 8 (16)"),
}  # fmt: skip
SILENT = {
    "names": ({"_name_or_path": "x", "transformers_version": "4"}, {"_name_or_path": "y", "transformers_version": "5"}),
    "training": ({"attention_dropout": 0.1, "initializer_range": 1}, {"attention_dropout": 0, "initializer_range": 2}),
    "running": ({"use_cache": True, "output_attentions": True}, {"use_cache": False, "return_dict": False}),
    "no and nothing": ({"bias": False, "list": []}, {}),
}


@pytest.mark.parametrize("name", TOLD)
def test_settings_that_change_what_is_computed_are_told(name):
    ours, theirs, said = TOLD[name]
    assert told(ours, theirs) == said


@pytest.mark.parametrize("name", SILENT)
def test_settings_that_change_nothing_are_not(name):
    assert told(*SILENT[name]) == ""


def test_sizes_that_shapes_tell_are_not_repeated():
    ours = {
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "mlp_ratio": 4.0,
        "types": ["f"] * 2,
        "window": 8,
    }
    theirs = {
        "hidden_size": 24,
        "intermediate_size": 96,
        "num_layers": 3,
        "num_heads": 6,
        "mlp_ratio": 6.0,
        "types": ["f"] * 3,
        "window": 12,
    }
    assert told(ours, theirs, (SHAPES, WIDER)) == "window 12 (8)"


def test_many_are_counted():
    assert told({f"k{i}": 1 for i in range(11)}, {f"k{i}": 2 for i in range(11)}).endswith("k7 2 (1) and 3 more")


@pytest.mark.parametrize(
    "labels", [{"a": "x"}, {"0": "x", "odd": "y"}, [], "no", {0: "LABEL_0", 1: "LABEL_1"}, {"0": "x"}]
)
def test_class_names_of_any_kind_are_read(labels):
    assert told({"id2label": {0: "a", 1: "b"}}, {"id2label": labels}) == ""


def test_classes_need_not_agree_where_the_classifier_is_set_aside():
    configs = {"id2label": {"0": "a", "1": "b"}}, {"id2label": {"0": "b", "1": "a"}}
    with pytest.raises(MatchError, match="class 0 is 'a' in the anchor and 'b' in the source"):
        told(*configs)
    assert told(*configs, classes=False) == ""


def test_modules_are_described():
    def model(window):
        torch.manual_seed(0)
        config = transformers.MistralConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=window // 4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24,
            sliding_window=window,
        )  # fmt: skip
        return transformers.MistralForCausalLM(config)

    (note,) = differences([described(model(4), "a"), described(model(8), "s")])
    assert note.endswith(", in sliding_window 8 (4)")
