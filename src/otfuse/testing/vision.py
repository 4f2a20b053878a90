"""Image and sound models, and one of images with text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otfuse.testing.hugging import SPECIAL, VOCABULARY, from_config, image, text_inputs
from otfuse.testing.record import Example, normal

if TYPE_CHECKING:
    from otfuse.testing.record import Inputs

VIT: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 36,
    "image_size": 12,
    "patch_size": 4,
}
PRE = "1x24 2x4 4x6/4 2x36"
SOUND = {k: v for k, v in VIT.items() if k != "image_size"}


def _pictures_and_text() -> Inputs:
    return {**text_inputs(), "pixel_values": normal(2, 3, 12, 12)}  # type: ignore[dict-item]


def _sides() -> dict[str, Any]:
    words = {"hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 4}
    words |= {"vocab_size": VOCABULARY, "max_position_embeddings": 32, **SPECIAL}
    return {"text_config": words, "vision_config": VIT, "projection_dim": 9}


EXAMPLES = (
    image("hf_vit", "ViTForImageClassification", PRE, **VIT),
    image(
        "vit_equal",
        "ViTForImageClassification",
        "1x16 2x4 4x4/4 2x16",
        **(VIT | {"hidden_size": 16, "intermediate_size": 16, "image_size": 16}),
        note="stream, inner units and patches are 16; heads, their units and the patch size are 4",
    ),
    image("deit", "DeiTForImageClassification", PRE, **VIT, note="two extra tokens"),
    image(
        "dinov2",
        "Dinov2ForImageClassification",
        "1x24 2x4 4x6/4 2x48",
        **(VIT | {"mlp_ratio": 2}),
        note="a gain after every branch",
    ),
    image("siglip", "SiglipForImageClassification", PRE, vision_config=VIT),
    image(
        "swin",
        "SwinForImageClassification",
        "2x2 2x4 4x6/2 4x6/4 1x12 1x24 2x48 2x96",
        image_size=16,
        patch_size=2,
        embed_dim=12,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        mlp_ratio=4.0,
        note="a table of position biases in every block pins nothing but its rows",
    ),
    image(
        "convnext",
        "ConvNextForImageClassification",
        "1x8 1x12 2x32 2x48",
        image_size=16,
        num_stages=2,
        hidden_sizes=[8, 12],
        depths=[2, 2],
        patch_size=2,
    ),
    image(
        "hf_resnet",
        "ResNetForImageClassification",
        "1x7 1x10 1x14 2x10 2x14",
        image_size=16,
        embedding_size=7,
        hidden_sizes=[10, 14],
        depths=[2, 2],
        layer_type="basic",
    ),
    Example(
        "ast",
        from_config(
            "ASTForAudioClassification",
            **SOUND,
            num_labels=5,
            num_mel_bins=8,
            max_length=12,
            frequency_stride=4,
            time_stride=4,
        ),
        lambda: {"input_values": normal(2, 12, 8)},
        PRE,
        from_config=True,
        note="patches of a spectrogram, two extra tokens",
    ),
    Example(
        "hubert",
        from_config(
            "HubertForCTC",
            **{k: v for k, v in SOUND.items() if k != "patch_size"},
            vocab_size=VOCABULARY,
            conv_dim=[10, 14],
            conv_stride=[5, 4],
            conv_kernel=[10, 4],
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=3,
            apply_spec_augment=False,
            **SPECIAL,
        ),
        lambda: {"input_values": normal(2, 200)},
        "1x3 1x8 2x4 4x6/4 2x36 1x10 1x14",
        from_config=True,
        note="a wave through convolutions; a grouped, weight-normalised convolution splits the stream into 3 groups of 8",
    ),
    Example(
        "clip",
        from_config("CLIPModel", **_sides()),
        _pictures_and_text,
        "1x20 2x4 4x5/4 2x28 1x24 2x4 4x6/4 2x36 1x9",
        from_config=True,
        note="two streams that meet in one projection",
    ),
)
