"""Settings of digits: scikit-learn's 1,797 images of 8 x 8, split anew by every seed.

1,297 are trained on and, without labels, the inputs; 500 are held out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import parents as known
from rows import Setting

from otfuse.core.dataset import Dataset
from otfuse.demo import images

if TYPE_CHECKING:
    from torch import nn

WEAK = known.TRAIN.model_copy(update={"steps": 450})  # about 95 % of held-out images
WELL = known.TRAIN.model_copy(update={"steps": 600, "batch_size": 64, "label_smoothing": 0.1})  # 98 to 99 %


def _few(data: Dataset, seed: int) -> Dataset:
    return data.take(known.few(data.size, seed))


def _digits(models: list[nn.Module], seed: int, inputs: int | None = None) -> Setting:
    data = known.digits(seed)
    order = np.random.default_rng(2000 + seed).permutation(data.train.size)[:inputs]
    return Setting(models, dict(data.inputs.take(order).inputs), data.held_out, _few(data.train, seed))


def know_2(seed: int) -> Setting:
    """Two parents that know different things: each saw five classes, and one image in twenty of the others."""
    return _digits(known.parents(2, seed), seed)


def know_3(seed: int) -> Setting:
    """Three parents that know different things."""
    return _digits(known.parents(3, seed), seed)


def know_5(seed: int) -> Setting:
    """Five parents that know different things: two classes each."""
    return _digits(known.parents(5, seed), seed)


def know_2_inputs_16(seed: int) -> Setting:
    """Two parents that know different things, 16 unlabelled inputs."""
    return _digits(known.parents(2, seed), seed, 16)


def know_2_inputs_32(seed: int) -> Setting:
    """Two parents that know different things, 32 unlabelled inputs."""
    return _digits(known.parents(2, seed), seed, 32)


def know_2_inputs_128(seed: int) -> Setting:
    """Two parents that know different things, 128 unlabelled inputs."""
    return _digits(known.parents(2, seed), seed, 128)


def same_2_weak(seed: int) -> Setting:
    """Two parents of one task, other seeds, trained for 450 steps; inputs are what they were trained on."""
    return _digits(known.parents(2, seed, same_task=True, options=WEAK), seed)


def same_5_weak(seed: int) -> Setting:
    """Five parents of one task, other seeds, trained for 450 steps."""
    return _digits(known.parents(5, seed, same_task=True, options=WEAK), seed)


def same_2_well(seed: int) -> Setting:
    """Two well-trained parents of one task: 600 steps of 64 on the demo's images of 16 x 16, shifted too; the inputs are as they are."""
    data = images.digits(probe=1)
    models = [
        known.trained(known.KEPT / f"well-{seed}-{i}.safetensors", 100 * seed + i, data.shifted, WELL, large=True)
        for i in range(2)
    ]
    few = _few(data.train, seed)
    return Setting(models, dict(data.train.inputs), data.held_out, few)


def same_2_unseen(seed: int) -> Setting:
    """Two parents of one task, trained for 450 steps on one half of the images; inputs are the other half, which no parent saw."""
    data = known.digits(seed)
    half, other = data.train.take(slice(0, 647)), data.train.take(slice(647, None))
    path = known.KEPT / f"half-{seed}"
    models = [
        known.trained(path.with_name(f"{path.name}-{i}.safetensors"), 100 * seed + i, half, WEAK) for i in range(2)
    ]
    return Setting(models, dict(other.inputs), data.held_out, _few(data.train, seed))


def wide_into_narrow(seed: int) -> Setting:
    """Two parents that know different things, the anchor of width 64, the source of width 96."""
    return _digits(known.parents(2, seed, widths=(64, 96)), seed)


def narrow_into_wide(seed: int) -> Setting:
    """The same, the anchor of width 96."""
    return _digits(known.parents(2, seed, widths=(64, 96))[::-1], seed)
