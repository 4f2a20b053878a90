"""Images as the model's ``pixel_values``: with the checkpoint's own image processor; of a model without a folder, from its config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from otfuse.errors import DataError
from otfuse.io.companions import NOT_TRUSTED, names_code
from otfuse.io.fit import image_size, setting
from otfuse.io.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL.Image import Image

    from otfuse.io.companions import Own

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_BATCH = 32


def read_image_folder(path: Path, config: Mapping[str, Any], own: Own) -> dict[str, NDArray[np.generic]]:
    """``pixel_values``, and ``labels`` if the images lie in one sub-folder per class.

    A class has the number that the config gives its name, if it names all of them, else its place in alphabetical order.
    """
    flat = _images(path)
    groups = {sub.name: _images(sub) for sub in sorted(path.iterdir()) if sub.is_dir() and not sub.name.startswith(".")}
    groups = {name: files for name, files in groups.items() if files}
    if flat and groups:
        raise DataError(
            f"data {path}: images lie both in the folder and in sub-folders; use one sub-folder per class, or none"
        )
    if not flat and not groups:
        raise DataError(f"data {path}: no images in the folder or its sub-folders; give images, or a file of arrays")
    if flat:
        return {"pixel_values": pixels(map(_open(config), flat), config, own)}
    known = config.get("label2id")
    known = known if isinstance(known, dict) and set(groups) <= set(known) else {n: i for i, n in enumerate(groups)}
    labels = [int(known[name]) for name, files in groups.items() for _ in files]
    files = [file for group in groups.values() for file in group]
    return {
        "pixel_values": pixels(map(_open(config), files), config, own),
        "labels": np.array(labels, dtype=np.int64),
    }


def _images(path: Path) -> list[Path]:
    return sorted(
        p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file() and not p.name.startswith(".")
    )


def _open(config: Mapping[str, Any]) -> Any:
    from PIL import Image

    def read(path: Path) -> Image.Image:
        try:
            with Image.open(path) as image:
                return image.convert(_mode(config))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(
                f"data {path}: cannot be read as an image ({type(error).__name__}); replace or remove it"
            ) from None

    return read


def _mode(config: Mapping[str, Any]) -> str:
    channels = setting(config, "num_channels", "vision") or 3
    if channels not in _MODES:
        raise DataError(
            f"data: images have 1, 3 or 4 channels, the model takes {channels}; give a file of arrays instead"
        )
    return _MODES[channels]


def pixels(images: Iterable[Image], config: Mapping[str, Any], own: Own) -> NDArray[np.float32]:
    """``[image, channels, height, width]``, prepared as the model was trained, as far as the checkpoint tells."""
    prepare = _processor(own) or _plain(config)
    parts = [prepare([image.convert(_mode(config)) for image in batch]) for batch in _batches(images)]
    return np.concatenate(parts).astype(np.float32, copy=False)


def _batches(images: Iterable[Image]) -> Iterator[list[Image]]:
    batch = []
    for image in images:
        batch.append(image)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _processor(own: Own) -> Any:
    if (folder := own.folder) is None:
        return None
    if not any((folder / f"{kind}_config.json").is_file() for kind in ("preprocessor", "processor")):
        raise DataError(  # how a trained model's images were scaled cannot be guessed
            f"data: images need an image processor, and {folder} has none; add its preprocessor_config.json, or give a file of "
            "arrays of 'pixel_values'"
        )
    try:
        with quiet():
            from transformers import AutoImageProcessor

            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=own.trusted)
    except Exception as error:  # noqa: BLE001 - whatever a processor's settings make transformers raise
        if not own.trusted and any(names_code(path) for path in folder.glob("*processor_config.json")):
            raise DataError(f"data: the image processor in {folder} {NOT_TRUSTED}") from None
        reason = (str(error).strip().split("\n")[0] or type(error).__name__).rstrip(".;")
        raise DataError(
            f"data: the image processor in {folder} cannot be used ({reason}); give a file of arrays instead"
        ) from None

    def prepare(images: list[Image]) -> Any:
        # Grey images have no axis of channels of their own, and processors guess wrongly where it should be.
        arrays = [np.atleast_3d(np.asarray(image)) for image in images]
        with quiet():
            return processor(images=arrays, return_tensors="np", input_data_format="channels_last")["pixel_values"]

    return prepare


def _plain(config: Mapping[str, Any]) -> Any:
    size = image_size(config)
    if size is None:
        raise DataError(
            "data: neither an image processor nor the config tells the size of the model's images; give a file of arrays"
        )

    def prepare(images: list[Image]) -> NDArray[np.float32]:
        resized = [np.atleast_3d(np.asarray(image.resize((size[1], size[0])), dtype=np.float32)) for image in images]
        return np.stack(resized).transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1)

    return prepare
