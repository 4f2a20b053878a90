"""Settings of other outputs, on scikit-learn's digits: a number (the angle by which an image was turned), and the name of a digit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import parents as known
import torch
import transformers
from rows import Setting
from safetensors.torch import load_file, save_file

from otfuse.core.dataset import Dataset
from otfuse.testing.small import image_classifier

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

STEPS, BATCH, RATE = 600, 32, 1e-3
MOST = 60.0  # degrees
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = ["<begin>", "<end>", *sorted(set("".join(NAMES)))]
LONGEST = 1 + max(map(len, NAMES))  # with the end


def _trained(
    name: str, made: nn.Module, batch: Callable[[np.ndarray], Mapping[str, torch.Tensor]], rows: np.ndarray, seed: int
) -> nn.Module:
    """Trained once on ``rows`` by the loss that the model gives; kept."""
    path = known.KEPT / f"{name}-{STEPS}.safetensors"
    if path.exists():
        made.load_state_dict(load_file(path), strict=False)
        return made.eval()
    chance = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(made.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=STEPS, pct_start=0.1)
    for _ in range(STEPS):
        optimiser.zero_grad()
        made(**batch(rows[chance.integers(0, len(rows), BATCH)])).loss.backward()
        optimiser.step()
        schedule.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({n: t.detach().clone() for n, t in made.state_dict().items()}, path)
    return made.eval()


def regression(seed: int) -> Setting:
    """A seed ensemble of three: each predicts by how many degrees an image was turned (over 60); squared error, in degrees its root."""
    from scipy.ndimage import rotate

    data, chance = known.digits(seed), np.random.default_rng(3000 + seed)

    def turned(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        angles = chance.uniform(-MOST, MOST, len(pixels))
        found = [
            rotate(image[0], angle, reshape=False, order=1)[None] for image, angle in zip(pixels, angles, strict=True)
        ]
        return np.stack(found).astype(np.float32), (angles / MOST).astype(np.float32)

    pixels, angles = turned(data.train.inputs["pixel_values"])
    test, wanted = turned(data.held_out.inputs["pixel_values"])

    def batch(rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.from_numpy(pixels[rows]), "labels": torch.from_numpy(angles[rows])}

    models = []
    for i in range(3):
        made = image_classifier(
            image_size=8, patch=2, hidden=64, layers=3, heads=4, mlp=128, labels=1, seed=100 * seed + i
        )
        models.append(_trained(f"angle-{seed}-{i}", made, batch, np.arange(len(pixels)), 100 * seed + i))

    rows = known.few(len(pixels), seed)
    few = Dataset({"pixel_values": pixels[rows]}, angles[rows])
    return Setting(models, {"pixel_values": pixels}, Dataset({"pixel_values": test}, wanted), few)


def image_to_text(seed: int) -> Setting:
    """A ViT encoder and a BERT decoder with cross-attention write a digit's name; each saw five digits, and one image in twenty of the others.

    Unlabelled inputs are images with the name that one of the parents wrote for it, half of them each.
    """
    data, chance = known.digits(seed), np.random.default_rng(seed)
    pixels = data.train.inputs["pixel_values"]
    labels = data.train.labels
    assert labels is not None
    spelled = np.full((10, LONGEST), -100)
    for digit, name in enumerate(NAMES):
        spelled[digit, : len(name) + 1] = [LETTERS.index(letter) for letter in name] + [1]

    def batch(rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.from_numpy(pixels[rows]), "labels": torch.from_numpy(spelled[labels[rows]])}

    models = []
    for i, classes in enumerate(np.array_split(chance.permutation(10), 2)):
        rare = chance.permutation(len(pixels)) % known.RARE == 0
        rows = (np.isin(labels, classes) | rare).nonzero()[0]
        models.append(_trained(f"names-{seed}-{i}", _writer(100 * seed + i), batch, rows, 100 * seed + i))
    half = np.array_split(pixels, 2)
    written = np.concatenate([_written(model, part) for model, part in zip(models, half, strict=True)])
    inputs = {"pixel_values": pixels, "decoder_input_ids": written}
    held_out = Dataset(data.held_out.inputs, spelled[data.held_out.labels])
    rows = known.few(len(pixels), seed)
    return Setting(models, inputs, held_out, Dataset({"pixel_values": pixels[rows]}, spelled[labels[rows]]))


def _writer(seed: int) -> nn.Module:
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    size: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, **still}
    sees = transformers.ViTConfig(image_size=8, patch_size=2, num_channels=1, num_hidden_layers=3, **size)
    asks = {"is_decoder": True, "add_cross_attention": True, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    writes = transformers.BertConfig(
        vocab_size=len(LETTERS), num_hidden_layers=2, max_position_embeddings=16, **size, **asks
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(sees, writes)
    config.decoder_start_token_id, config.pad_token_id = 0, 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.VisionEncoderDecoderModel(config=config).eval()


@torch.no_grad()
def _written(model: Any, pixels: np.ndarray) -> np.ndarray:
    """What the model writes, letter by letter, as it is read again: the first letter is the beginning."""
    ids = torch.zeros(len(pixels), 1, dtype=torch.int64)
    for _ in range(LONGEST - 1):
        logits = model(pixel_values=torch.from_numpy(pixels), decoder_input_ids=ids).logits
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids.numpy()
