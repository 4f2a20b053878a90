"""Hugging Face models of the example database, built from a configuration and never downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from otfuse.testing.record import Example, normal, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from otfuse.testing.record import Build, Inputs

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VOCABULARY = 50


def from_config(class_name: str, **options: Any) -> Build:
    """A constructor of ``transformers.<class_name>`` from these values of its config."""

    def build() -> nn.Module:
        import transformers

        model_class: Any = getattr(transformers, class_name)
        module: nn.Module = model_class(model_class.config_class(**options))
        return module

    return build


def text(name: str, class_name: str, spaces: str, *, rotary: str = "", note: str = "", **options: Any) -> Example:
    """A model of token ids; the second row of its inputs is padded by two, unless it sees no mask."""
    options = {"vocab_size": VOCABULARY, **SPECIAL, **options}
    build, vocabulary = from_config(class_name, **options), options["vocab_size"]
    return Example(name, build, lambda: text_inputs(vocabulary), spaces, rotary=rotary, from_config=True, note=note)


def text_inputs(vocabulary: int = VOCABULARY) -> Inputs:
    """Token ids ``[2, 7]`` and their mask, the last two places of the second row being padding."""
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 5:] = 0
    return {"input_ids": tokens(2, 7, vocabulary), "attention_mask": mask}


def pair_inputs() -> Inputs:
    """Token ids ``[2, 7]`` for the encoder and ``[2, 5]`` for the decoder."""
    return {"input_ids": tokens(2, 7, VOCABULARY), "decoder_input_ids": tokens(2, 5, VOCABULARY, seed=1)}


def image(name: str, class_name: str, spaces: str, *, image_size: int = 12, note: str = "", **options: Any) -> Example:
    """An image classifier with five labels, on two images of ``[3, image_size, image_size]``."""
    build = from_config(class_name, num_labels=5, image_size=image_size, **options)
    return Example(name, build, images(image_size), spaces, from_config=True, note=note)


def images(size: int, batch: int = 2) -> Callable[[], Inputs]:
    """Makes ``pixel_values[batch, 3, size, size]``."""
    return lambda: {"pixel_values": normal(batch, 3, size, size)}
