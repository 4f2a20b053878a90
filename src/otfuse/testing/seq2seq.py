"""Encoder-decoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otfuse.testing.encoders import BERT
from otfuse.testing.hugging import SPECIAL, VOCABULARY, from_config, images, pair_inputs
from otfuse.testing.record import Example, normal, tokens
from otfuse.testing.vision import VIT

if TYPE_CHECKING:
    from otfuse.testing.record import Build, Inputs

SIDES: dict[str, Any] = {
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 36,
    "decoder_ffn_dim": 36,
    "decoder_start_token_id": 2,
}
DECODER = {"is_decoder": True, "add_cross_attention": True, "vocab_size": VOCABULARY, **SPECIAL}


def _joined(class_name: str, first: tuple[str, dict[str, Any]], second: tuple[str, dict[str, Any]]) -> Build:
    """An encoder and a decoder, given as (model type, values of the config), with cross-attention between them."""

    def build() -> Any:
        import transformers

        encoder, decoder = (transformers.AutoConfig.for_model(kind, **options) for kind, options in (first, second))
        model_class: Any = getattr(transformers, class_name)
        config = model_class.config_class.from_encoder_decoder_configs(encoder, decoder)
        config.decoder_start_token_id, config.pad_token_id = 1, 0
        return model_class(config)

    return build


def _captions() -> Inputs:
    return {**dict(images(12)()), "decoder_input_ids": tokens(2, 5, VOCABULARY)}  # type: ignore[arg-type]


def _speech() -> Inputs:
    return {"input_features": normal(2, 8, 24), "decoder_input_ids": tokens(2, 5, VOCABULARY)}


EXAMPLES = (
    Example(
        "t5",
        from_config(
            "T5ForConditionalGeneration",
            vocab_size=VOCABULARY,
            d_model=24,
            d_kv=5,
            d_ff=36,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=1,
        ),
        pair_inputs,
        "1x24 4x4 12x5/4 4x36",
        from_config=True,
        note="one position bias for all layers of a stack, so their heads are one space",
    ),
    Example(
        "bart",
        from_config(
            "BartForConditionalGeneration", vocab_size=VOCABULARY, max_position_embeddings=32, **SPECIAL, **SIDES
        ),
        pair_inputs,
        "1x24 6x4 12x6/4 4x36",
        from_config=True,
    ),
    Example(
        "whisper",
        from_config(
            "WhisperForConditionalGeneration",
            vocab_size=VOCABULARY,
            num_mel_bins=8,
            max_source_positions=12,
            max_target_positions=16,
            **SPECIAL,
            **SIDES,
        ),
        _speech,
        "3x24 6x4 12x6/4 4x36",
        from_config=True,
        note="two convolutions over time before the encoder",
    ),
    Example(
        "vision_enc_dec",
        _joined(
            "VisionEncoderDecoderModel",
            ("vit", VIT | {"hidden_size": 20}),
            ("gpt2", {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 32} | DECODER),
        ),
        _captions,
        "4x3 2x4 4x5/4 8x8/3 1x20 2x24 2x36 2x96",
        from_config=True,
        note="an image encoder and a causal decoder of another width",
    ),
    Example(
        "vit_bert",
        _joined(
            "VisionEncoderDecoderModel",
            ("vit", VIT | {"hidden_size": 20, "intermediate_size": 28}),
            ("bert", BERT | DECODER),
        ),
        _captions,
        "1x20 2x4 4x5/4 2x28 2x24 4x4 8x6/4 2x36",
        from_config=True,
    ),
    Example(
        "bert_encdec",
        _joined(
            "EncoderDecoderModel",
            ("bert", BERT | SPECIAL | {"hidden_size": 20, "vocab_size": VOCABULARY}),
            ("bert", BERT | DECODER),
        ),
        pair_inputs,
        "6x4 4x5/4 8x6/4 1x20 2x24 4x36",
        from_config=True,
    ),
)
