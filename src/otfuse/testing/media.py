"""Models that read images or sounds where tokens stand for them, or beside the text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from otfuse.testing.hugging import SPECIAL, VOCABULARY
from otfuse.testing.record import Example, normal, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from otfuse.testing.record import Inputs

PLACE = VOCABULARY - 1  # the token that an image stands for
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    **SPECIAL,
}
IMAGE: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
VISION = "1x24 2x4 4x6/4 2x40"  # two pre-norm blocks
WORDS = "1x32 2x2 2x2/2 2x8/2 2x48"  # two blocks with two key/value heads, each for two query heads
ONE = "1x32 1x2 1x2/2 1x8/2 1x48"  # one such block
TURNS = "2x4/2"


def joined(
    name: str, class_name: str, spaces: str, inputs: Callable[[], Inputs], *, text: Any = None, vision: Any = None,
    rotary: str = TURNS, note: str = "", **options: Any,
) -> Example:  # fmt: skip
    """A model of a tower and a language model; ``text`` and ``vision`` are values of their configs, or (class, values)."""

    def part(given: Any) -> Any:
        import transformers

        return getattr(transformers, given[0])(**given[1]) if isinstance(given, tuple) else given

    def build() -> nn.Module:
        import transformers

        parts = {"text_config": part(text or TEXT)}
        parts |= {} if "audio_config" in options else {"vision_config": part(vision or IMAGE)}
        model_class: Any = getattr(transformers, class_name)
        module: nn.Module = model_class(model_class.config_class(**(parts | options)))
        return module

    return Example(name, build, inputs, spaces, rotary=rotary, from_config=True, note=note)


def among(count: int, **media: Callable[[], Any]) -> Callable[[], Inputs]:
    """Token ids ``[2, count + 6]`` of which ``count`` in a row stand for an image (or sound), and what else is given."""

    def make() -> Inputs:
        words = tokens(2, 6, VOCABULARY - 1)
        ids = torch.cat([words[:, :3], torch.full((2, count), PLACE), words[:, 3:]], 1)
        return {"input_ids": ids, **{n: value() for n, value in media.items()}}

    return make


def marks(count: int) -> Any:
    """1 where a token stands for an image."""
    found = torch.zeros(2, count + 6, dtype=torch.int64)
    found[:, 3 : 3 + count] = 1
    return found


def whole(*rows: Any) -> Callable[[], Any]:
    """Whole numbers, the same for both examples."""
    return lambda: torch.tensor([rows] * 2)


def pictures(*shape: int) -> Callable[[], Any]:
    """``[2, *shape, 3, 16, 16]``."""
    return lambda: normal(2, *shape, 3, 16, 16)


LLAMA, CLIP, SIGLIP = "LlamaConfig", "CLIPVisionConfig", "SiglipVisionConfig"
CAUSAL = {"model_type": "llama", **TEXT}
SHORT = TEXT | {"num_hidden_layers": 1}
TURNED = SHORT | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}}
PLAIN = {k: v for k, v in TEXT.items() if k != "num_key_value_heads"}
QFORMER = {
    k: PLAIN[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
}
OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, **{k: v for k, v in PLAIN.items() if k != "intermediate_size"}}
SOUND: dict[str, Any] = {
    "num_mel_bins": 8,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "d_model": 24,
    "max_source_positions": 16,
}
GRIDDED: dict[str, Any] = {
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "depth": 1,
}
TILED: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_global_layers": 1,
    "attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 4,
    "vision_output_dim": 48,
    "intermediate_layers_indices": [0],
    "max_num_tiles": 2,
    "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
}
COUNTED = {
    "pixel_values": lambda: normal(48, 96),
    "image_grid_thw": whole(1, 4, 6),
    "mm_token_type_ids": lambda: marks(6),
}

EXAMPLES = (
    joined(
        "llava",
        "LlavaForConditionalGeneration",
        f"1x24 1x4 2x6/4 1x40 1x32 {WORDS}",
        among(16, pixel_values=pictures()),
        text=(LLAMA, TEXT),
        vision=(CLIP, IMAGE),
        image_token_index=PLACE,
        vision_feature_layer=-2,
        note="features of the last layer but one: nothing depends on the last",
    ),
    joined(
        "llava_next",
        "LlavaNextForConditionalGeneration",
        f"1x24 1x4 2x6/4 1x40 1x32 {ONE}",
        among(52, pixel_values=pictures(3), image_sizes=whole(16, 32)),
        text=(LLAMA, SHORT),
        vision=(CLIP, IMAGE),
        rotary="1x4/2",
        image_token_index=PLACE,
        image_grid_pinpoints=[[16, 32], [32, 16]],
        vision_feature_layer=-2,
        note="a whole image and its tiles; a stored token ends every row",
    ),
    joined(
        "gemma3",
        "Gemma3ForConditionalGeneration",
        f"{VISION} {WORDS}",
        among(4, pixel_values=pictures()),
        text=("Gemma3TextConfig", TEXT | {"head_dim": 8}),
        vision=(SIGLIP, IMAGE),
        rotary="",
        mm_tokens_per_image=4,
        image_token_index=PLACE,
        note="patches averaged by fours; norms of query and key keep their pairs",
    ),
    joined(
        "paligemma",
        "PaliGemmaForConditionalGeneration",
        f"{VISION} {WORDS}",
        among(16, pixel_values=pictures()),
        text={"model_type": "gemma", "head_dim": 8, **TEXT},
        vision={"model_type": "siglip_vision_model", "projection_dim": 32, **IMAGE},
        image_token_index=PLACE,
        projection_dim=32,
    ),
    joined(
        "idefics3",
        "Idefics3ForConditionalGeneration",
        f"{VISION} {WORDS}",
        among(4, pixel_values=pictures(1)),
        text=CAUSAL,
        image_token_id=PLACE,
        scale_factor=2,
        note="several images may stand in one example; forward asks which are empty",
    ),
    joined(
        "smolvlm",
        "SmolVLMForConditionalGeneration",
        f"{VISION} {ONE}",
        among(4, pixel_values=pictures(1)),
        text=CAUSAL | SHORT,
        rotary="1x4/2",
        image_token_id=PLACE,
        scale_factor=2,
    ),
    joined(
        "qwen2_vl",
        "Qwen2VLForConditionalGeneration",
        f"1x24 1x2 1x12/2 1x48 1x96 {ONE}",
        among(6, **COUNTED),
        text=TURNED,
        vision={"embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2, **GRIDDED},
        rotary="1x2/2",
        image_token_id=PLACE,
        note="patches counted by a grid, which forward loops over; four of them make a token",
    ),
    joined(
        "qwen2_5_vl",
        "Qwen2_5_VLForConditionalGeneration",
        f"1x24 1x2 1x12/2 1x40 1x96 {ONE}",
        among(6, **COUNTED),
        text=TURNED,
        vision={"hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 40, "window_size": 16, **GRIDDED},
        rotary="1x2/2",
        image_token_id=PLACE,
        note="patches in another order, by windows",
    ),
    joined(
        "qwen2_audio",
        "Qwen2AudioForConditionalGeneration",
        f"2x24 2x4 4x6/4 2x40 {WORDS}",
        among(
            8,
            input_features=lambda: normal(2, 8, 32),
            feature_attention_mask=whole(*[1] * 32),
            attention_mask=whole(*[1] * 14),
        ),
        text={"model_type": "qwen2", **TEXT},
        audio_config=SOUND,
        audio_token_index=PLACE,
        note="a sound among words",
    ),
    joined(
        "internvl",
        "InternVLForConditionalGeneration",
        f"{VISION} 1x32 {WORDS}",
        among(4, pixel_values=pictures()),
        text={"model_type": "qwen2", **TEXT},
        vision=IMAGE | {"image_size": [16, 16], "patch_size": [4, 4]},
        image_token_id=PLACE,
        downsample_ratio=0.5,
    ),
    joined(
        "mllama",
        "MllamaForConditionalGeneration",
        f"1x24 3x4 6x6/4 3x40 1x32 1x8 {WORDS}",
        among(
            1,
            pixel_values=pictures(1, 2),
            aspect_ratio_ids=whole(1),
            aspect_ratio_mask=whole([1, 1]),
            cross_attention_mask=whole(*[[[1, 1]]] * 7),
        ),
        text=TEXT | {"cross_attention_layers": [1]},
        vision=TILED,
        rotary="1x4/2",
        image_token_index=PLACE,
        note="tiles that a layer of its own attends to",
    ),
    joined(
        "kosmos2",
        "Kosmos2ForConditionalGeneration",
        "1x24 5x4 6x8/4 4x6/4 2x40 2x48 1x32",
        among(4, pixel_values=pictures(), image_embeds_position_mask=lambda: marks(4).bool()),
        text={
            "vocab_size": VOCABULARY,
            "embed_dim": 32,
            "layers": 2,
            "ffn_dim": 48,
            "attention_heads": 4,
            "max_position_embeddings": 64,
        },
        rotary="",
        latent_query_num=4,
        note="places of the image told by a mask; sines pin the stream of the text",
    ),
    joined(
        "blip2",
        "Blip2ForConditionalGeneration",
        "1x24 7x4 10x8/4 4x6/4 2x40 4x48 2x32",
        among(4, pixel_values=pictures()),
        text=("OPTConfig", OPT),
        rotary="",
        qformer_config=QFORMER | {"encoder_hidden_size": 24},
        num_query_tokens=4,
        image_token_index=PLACE,
        note="stored questions that attend to the image",
    ),
    joined(
        "blip",
        "BlipForConditionalGeneration",
        "1x24 1x32 6x4 8x8/4 4x6/4 2x40 2x48",
        lambda: {"input_ids": tokens(2, 7, VOCABULARY), "pixel_values": normal(2, 3, 16, 16)},
        text=PLAIN | {"encoder_hidden_size": 24},
        rotary="",
        image_text_hidden_size=16,
        note="a caption decoder that attends to the image",
    ),
)
