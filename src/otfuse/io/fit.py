"""Whether data fit a model, as far as its configuration tells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from otfuse.errors import DataError
from otfuse.io.counted import beyond, joins

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from otfuse.core.dataset import Dataset

IGNORED = -100  # the label that no loss counts
_SECTIONS = {  # where a model made of parts keeps the settings of each
    "decoder": ("decoder", "decoder_config", "text_config"),
    "text": ("text_config", "encoder", "text_encoder"),
    "vision": ("vision_config", "encoder", "vision_encoder"),
}


def setting(config: Mapping[str, Any], key: str, part: str) -> Any:
    """``key`` of the config, else of its section for that part (decoder, text, vision), else None."""
    for section in (config, *(config.get(name) for name in _SECTIONS[part])):
        if isinstance(section, dict) and section.get(key) is not None:
            return section[key]
    return None


def positions(config: Mapping[str, Any], part: str) -> int | None:
    """The most tokens the model takes, or None where its config sets no bound (relative positions have none)."""
    if setting(config, "relative_attention_num_buckets", part) is not None:
        return None
    bound = setting(config, "max_position_embeddings", part) or setting(config, "n_positions", part)
    return bound if isinstance(bound, int) and bound > 0 else None


def image_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the images that the model takes, or None if its config does not say."""
    size = setting(config, "image_size", "vision")
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if isinstance(size, (list, tuple)) and len(size) == 2 else None


def classes(config: Mapping[str, Any]) -> int | None:
    """Number of classes, or None if the model is no classifier. A config that says nothing means two."""
    if not any("Classification" in str(name) for name in config.get("architectures") or ()):
        return None
    return len(config["id2label"]) if isinstance(config.get("id2label"), dict) else int(config.get("num_labels") or 2)


def shift_right(labels: NDArray[np.generic], config: Mapping[str, Any]) -> NDArray[np.int64]:
    """What a decoder reads to predict ``labels[example, token]``: one place to the right, behind the start token."""
    pad = setting(config, "pad_token_id", "decoder") or 0
    start = setting(config, "decoder_start_token_id", "decoder")
    ids = np.full(labels.shape, pad, dtype=np.int64)
    ids[:, 0] = pad if start is None else start
    ids[:, 1:] = np.where(labels[:, :-1] == IGNORED, pad, labels[:, :-1])
    return ids


def check_fits(dataset: Dataset, config: Mapping[str, Any], *, where: str = "data") -> None:
    """Refuse images of another shape, token ids outside the vocabulary, texts too long and labels that are no class.

    Only what ``config`` (a checkpoint's config.json) states is checked. Raises :class:`DataError`.
    """
    if (pixels := dataset.inputs.get("pixel_values")) is not None and "image_grid_thw" not in dataset.inputs:
        _check_images(pixels, config, where)
    for name, part in (("input_ids", "text"), ("decoder_input_ids", "decoder")):
        if (ids := dataset.inputs.get(name)) is not None:
            _check_tokens(name, ids, config, part, where)
            for other in (name.replace("input_ids", mask) for mask in ("attention_mask", "token_type_ids")):
                if other in dataset.inputs and (shape := dataset.inputs[other].shape) != ids.shape:
                    raise DataError(
                        f"data {where}: {other!r} has shape {_shape(shape)}, {name!r} {_shape(ids.shape)}; make them equal"
                    )
    kinds = setting(config, "type_vocab_size", "text")
    if (types := dataset.inputs.get("token_type_ids")) is not None and isinstance(kinds, int):
        _check_range("token_type_ids", types, kinds, "token types", where)
    if dataset.labels is not None:
        _check_labels(dataset, config, where)


def _shape(shape: tuple[int, ...]) -> list[int]:
    return list(shape)


def _check_images(pixels: NDArray[np.generic], config: Mapping[str, Any], where: str) -> None:
    channels, size = setting(config, "num_channels", "vision"), image_size(config)
    if setting(config, "num_frames", "vision") is not None or (channels is None and size is None):
        return  # videos have an axis more, and models differ in where
    wanted = [f"{channels or 'channels'}", *(map(str, size) if size else ("height", "width"))]
    have = [str(n) for n in pixels.shape[1:]]
    if len(have) > 3 and joins(config):  # several images, or tiles of one, in each example; cut or padded as they come
        have, wanted = have[-3:], [wanted[0], "height", "width"]
    if len(have) == 3 and all(w == h or not w.isdigit() for w, h in zip(wanted, have, strict=True)):
        return
    last = len(have) == 3 and have[2] == wanted[0] != have[0]
    hint = "move the channels to axis 1" if last else "resize the images"
    if len(have) == 2:
        hint = "the axis of channels is missing: add it as axis 1"
    raise DataError(
        f"data {where}: 'pixel_values' has shape {_shape(pixels.shape)}, the model takes [examples, {', '.join(wanted)}]; {hint}"
    )


def _check_tokens(name: str, ids: NDArray[np.generic], config: Mapping[str, Any], part: str, where: str) -> None:
    if ids.ndim != 2:
        raise DataError(f"data {where}: {name!r} has shape {_shape(ids.shape)}, wanted [examples, tokens]; reshape it")
    vocabulary, most = setting(config, "vocab_size", part), positions(config, part)
    if isinstance(vocabulary, int):
        _check_range(name, ids, max(vocabulary, beyond(config)), "tokens of the vocabulary", where)
    if most is not None and ids.shape[1] > most:
        raise DataError(
            f"data {where}: {name!r} has {ids.shape[1]} tokens per example, the model takes {most}; cut them"
        )


def _check_range(name: str, values: NDArray[np.generic], count: int, what: str, where: str) -> None:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= count:
        raise DataError(
            f"data {where}: {name!r} holds {low if low < 0 else high}, outside the model's {count} {what}; were the data made for another model?"
        )


def _check_labels(dataset: Dataset, config: Mapping[str, Any], where: str) -> None:
    labels, count = dataset.labels, classes(config)
    assert labels is not None
    if not np.issubdtype(labels.dtype, np.integer):
        return
    counted = labels[labels != IGNORED]
    if count is not None:
        tokens = any("TokenClassification" in str(name) for name in config["architectures"])
        if labels.ndim != 1 and not tokens:
            raise DataError(
                f"data {where}: 'labels' has shape {_shape(labels.shape)}, a classifier takes one class per example"
            )
        if counted.size:
            _check_range("labels", counted, count, "classes", where)
        return
    vocabulary = setting(config, "vocab_size", "decoder")
    if labels.ndim == 2 and counted.size and isinstance(vocabulary, int):
        _check_range("labels", counted, vocabulary, "tokens of the vocabulary", where)
