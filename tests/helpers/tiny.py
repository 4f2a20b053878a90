"""Tiny models of five classes, saved as checkpoints with what belongs beside them."""

from __future__ import annotations

from transformers import ViTImageProcessorPil

from any_width import drawn
from otfuse.testing import small
from otfuse.testing.text import tokenizer

TEXT = "the quick brown fox jumps over the lazy dog, and the dog sleeps on. "
LENGTH = 16
SIZES = {"hidden": 16, "layers": 2, "heads": 2, "mlp": 24}
WORDS = {"vocabulary": 5 + len(set(TEXT)), "length": LENGTH}


def build(kind, seed=0, **sizes):
    """A model whose every parameter matters: matrices keep the scale of what they read, gains lie around one."""
    sizes = SIZES | sizes
    if kind == "vit":
        model = small.image_classifier(image_size=8, patch=4, labels=3, **sizes)
    elif kind == "t5":
        model = small.text_to_text(vocabulary=WORDS["vocabulary"], **sizes)
    elif kind == "llama":
        model = small.grouped_lm(**WORDS, **(sizes | {"heads": 4, "groups": 2}))
    else:
        model = {"bert": small.masked_lm, "gpt2": small.causal_lm}[kind](**WORDS, **sizes)
    return drawn(model, seed, spread=0.2)


def save(model, folder):
    """The checkpoint with what belongs beside it: a tokenizer, or an image processor."""
    model.save_pretrained(folder)
    if "pixel_values" in model.main_input_name:
        ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5]).save_pretrained(folder)
    else:
        tokenizer(TEXT, folder=folder)
    return folder


def listing(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
