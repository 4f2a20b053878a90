"""Small models for the demo, the experiments and the tests: built from a config, initialised from a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn

SPECIAL = {
    "pad_token_id": 0,
    "unk_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "mask_token_id": 4,
}  # as in testing.text
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def image_classifier(
    *,
    image_size: int = 16,
    patch: int = 4,
    hidden: int = 64,
    layers: int = 4,
    heads: int = 4,
    mlp: int = 128,
    labels: int = 10,
    channels: int = 1,
    seed: int = 0,
) -> nn.Module:
    """A vision transformer for ``pixel_values[batch, channels, image_size, image_size]``."""
    return _built(
        "ViTForImageClassification",
        seed,
        image_size=image_size,
        patch_size=patch,
        num_channels=channels,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=mlp,
        num_labels=labels,
        **NO_DROPOUT,
    )


def masked_lm(
    *,
    vocabulary: int,
    length: int = 64,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    mlp: int = 128,
    seed: int = 0,
) -> nn.Module:
    """A post-norm masked language model for ``input_ids[batch, length]``, its decoder tied to the embedding."""
    return _built(
        "BertForMaskedLM",
        seed,
        vocab_size=vocabulary,
        max_position_embeddings=length,
        type_vocab_size=1,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=mlp,
        **_text_tokens(),
        **NO_DROPOUT,
    )


def causal_lm(
    *,
    vocabulary: int,
    length: int = 64,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    mlp: int = 256,
    seed: int = 0,
) -> nn.Module:
    """A pre-norm causal language model with learned positions and a tied head, for ``input_ids[batch, length]``."""
    return _built(
        "GPT2LMHeadModel",
        seed,
        vocab_size=vocabulary,
        n_positions=length,
        n_embd=hidden,
        n_layer=layers,
        n_head=heads,
        n_inner=mlp,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **_text_tokens(),
    )


def grouped_lm(
    *,
    vocabulary: int,
    length: int = 64,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    groups: int = 2,
    mlp: int = 128,
    seed: int = 0,
) -> nn.Module:
    """A causal language model with rotary positions, ``groups`` key/value heads and gated MLPs."""
    return _built(
        "LlamaForCausalLM",
        seed,
        vocab_size=vocabulary,
        max_position_embeddings=length,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=mlp,
        **_text_tokens(),
    )


def text_to_text(
    *,
    vocabulary: int,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    mlp: int = 128,
    seed: int = 0,
) -> nn.Module:
    """An encoder-decoder with relative positions, for ``input_ids`` and ``decoder_input_ids``."""
    return _built(
        "T5ForConditionalGeneration",
        seed,
        vocab_size=vocabulary,
        d_model=hidden,
        d_kv=hidden // heads,
        d_ff=mlp,
        num_layers=layers,
        num_heads=heads,
        dropout_rate=0.0,
        decoder_start_token_id=SPECIAL["pad_token_id"],
        pad_token_id=SPECIAL["pad_token_id"],
        eos_token_id=SPECIAL["eos_token_id"],
    )


def _text_tokens() -> dict[str, int]:
    return {name: SPECIAL[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")}


def _built(class_name: str, seed: int, **options: Any) -> nn.Module:
    """``transformers.<class_name>`` as its own initialisation draws it from ``seed``; the global state is left alone."""
    import transformers

    model_class: Any = getattr(transformers, class_name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = model_class(model_class.config_class(**options)).eval()
    return model
