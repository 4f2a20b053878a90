"""Sources that look alike and compute otherwise."""

from __future__ import annotations

import pytest
import torch
import transformers

import otfuse
from otfuse.errors import MatchError

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 36}


def image_model(classes="", **options):
    torch.manual_seed(len(options))
    config = transformers.ViTConfig(**SIZES, image_size=12, patch_size=4, num_labels=5, **options)
    if classes:
        config.id2label = dict(enumerate(classes))
    return transformers.ViTForImageClassification(config).eval()


def text_model(kind="Llama", **options):
    torch.manual_seed(len(options))
    config = getattr(transformers, f"{kind}Config")(**SIZES, vocab_size=50, num_key_value_heads=2, **options)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


REFUSED = {  # anchor, source, what is said
    "activation": (image_model(), image_model(hidden_act="relu"), "mlp.activation_fn the anchor computes gelu and the source relu"),
    "classes": (image_model("abcde"), image_model("edcba"), "class 0 is 'a' in the anchor and 'e' in the source"),
    "ties": (text_model(tie_word_embeddings=True), text_model(), "are one tensor in the anchor and two in the source"),
}  # fmt: skip
NOTED = {
    "angles": (text_model(rope_theta=1e4), text_model(rope_theta=5e2), ["rope_theta 500.0 (10000.0)"]),
    "epsilon": (text_model(rms_norm_eps=1e-6), text_model(rms_norm_eps=1e-2), ["rms_norm_eps 0.01 (1e-06)"]),
    "class": (
        text_model(),
        text_model("Mistral", sliding_window=None),
        ["class MistralForCausalLM (LlamaForCausalLM)"],
    ),
    "nothing": (image_model("abcde"), image_model(), []),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_one_model_is_refused(name):
    anchor, source, said = REFUSED[name]
    with pytest.raises(MatchError, match=said.replace("(", r"\(")):
        otfuse.fuse([anchor, source])


@pytest.mark.parametrize("name", NOTED)
def test_what_the_source_does_otherwise_is_noted(name):
    anchor, source, said = NOTED[name]
    notes = otfuse.fuse([anchor, source], "otfusion-wts").report.notes
    assert len(notes) == len(said)
    assert all(part in note for part, note in zip(said, notes, strict=True))


@pytest.mark.parametrize("recipe", ["vanilla", "otfusion-wts"])
def test_a_tied_source_gives_its_one_table_for_both(recipe):
    anchor, source = text_model(), text_model(tie_word_embeddings=True)
    model = otfuse.fuse([anchor, source], recipe).model
    assert not model.lm_head.weight.equal(model.model.embed_tokens.weight)
    if recipe == "vanilla":
        assert model.lm_head.weight.allclose((anchor.lm_head.weight + source.lm_head.weight) / 2)
