"""Digit classifiers that know different things: trained once, kept in build/parents.

Images are the 1,797 of 8 x 8 of scikit-learn, 1,297 to train on and as unlabelled inputs, 500 held out. Every parent saw all
images of its own classes, and one in twenty of the others.

    from parents import digits, parents
    data = digits(seed=0)
    models = parents(k=2, seed=0)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from otfuse.core.dataset import Dataset
from otfuse.testing.small import image_classifier
from otfuse.train.finetune import finetune
from otfuse.train.options import FinetuneOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

KEPT = Path(__file__).resolve().parents[2] / "build" / "parents"
TRAIN = FinetuneOptions(steps=300, batch_size=32, learning_rate=1e-3, weight_decay=0.05, device="cpu")
IMAGES = 1297  # to train on; the others are held out
WIDTH = 64
RARE = 20  # one in so many images of other classes
FEW = 100  # labels to finetune with


@dataclass(frozen=True, slots=True, eq=False)
class Digits:
    """``train`` and ``held_out`` with labels; ``inputs`` are the images of ``train`` without."""

    train: Dataset
    held_out: Dataset

    @property
    def inputs(self) -> Dataset:
        return Dataset(self.train.inputs)


def digits(seed: int) -> Digits:
    """The images, split by ``seed``."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(seed)).numpy()
    pixels = (found.images[order, None] / 16).astype(np.float32)
    whole = Dataset({"pixel_values": pixels}, found.target[order])
    return Digits(whole.take(slice(0, IMAGES)), whole.take(slice(IMAGES, None)))


def few(count: int, seed: int) -> np.ndarray:
    """Which of so many images have a label to finetune with."""
    return np.random.default_rng(1000 + seed).permutation(count)[:FEW]


def model(seed: int, width: int = WIDTH, *, large: bool = False) -> nn.Module:
    """4 blocks, 4 heads, 17 tokens: patches of 2 x 2 of images of 8 x 8, or twice as large."""
    size = {"image_size": 16, "patch": 4} if large else {"image_size": 8, "patch": 2}
    return image_classifier(**size, hidden=width, layers=4, heads=4, mlp=2 * width, seed=seed)


def parents(
    k: int, seed: int, *, same_task: bool = False, options: FinetuneOptions = TRAIN, widths: Sequence[int] = ()
) -> list[nn.Module]:
    """``k`` models from ``k`` seeds; each knows its share of the ten classes well, or all of them with ``same_task``."""
    data, chance = digits(seed).train, np.random.default_rng(seed)
    shares = np.array_split(chance.permutation(10), k)
    found = []
    for i, classes in enumerate(shares):
        rare = chance.permutation(data.size) % RARE == 0
        own = np.isin(data.labels, classes) | rare | same_task
        width = widths[i] if widths else WIDTH
        kind = f"{'same' if same_task else 'know'}-{k}-{seed}-{i}-{options.steps}{f'-{width}' * (width != WIDTH)}"
        path = KEPT / f"{kind}.safetensors"
        found.append(trained(path, 100 * seed + i, data.take(own.nonzero()[0]), options, width))
    return found


def trained(
    path: Path, seed: int, data: Dataset, options: FinetuneOptions, width: int = WIDTH, *, large: bool = False
) -> nn.Module:
    """A digit classifier that is trained once; ``large``: for images of 16 x 16."""
    made = model(seed, width, large=large)
    if path.exists():
        made.load_state_dict(load_file(path))
        return made.eval()
    made = finetune(made, data, options=options.model_copy(update={"seed": seed})).model.eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in made.state_dict().items()}, path)
    return made
