"""Folders saved by the `datasets` library: arrays named as inputs, else its images or its text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from otfuse.errors import DataError
from otfuse.io.fit import IGNORED, setting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from otfuse.io.companions import Own


def read_hub_dataset(
    path: Path, names: Sequence[str], config: Mapping[str, Any], own: Own, length: int | None
) -> dict[str, Any]:
    """Columns named as inputs (token lists are padded), else an image column as ``pixel_values`` or a text as tokens.

    A column ``label`` serves as ``labels``.
    """
    import datasets

    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        # The library itself fails on a folder without files, which is how it saves no rows.
        data: Any = datasets.load_from_disk(str(path)) if state["_data_files"] else ()
    except Exception as error:  # noqa: BLE001 - the library raises what its files happen to break
        raise DataError(f"data {path}: cannot be read by datasets ({type(error).__name__}); save it again") from None
    if len(data) == 0:
        raise DataError(f"data {path}: the dataset is empty; give at least one example")
    arrays: dict[str, Any] = {}
    if found := [name for name in names if name in data.column_names]:
        plain = data.with_format("numpy")
        arrays = {name: _rectangular(name, plain[name][:], config) for name in found}
        _add_mask(arrays, data, names)
    elif image := _column_of(data, datasets.Image):
        from otfuse.io.images import pixels

        arrays = {"pixel_values": pixels((row[image] for row in data), config, own)}
    elif text := _text_column(data):
        from otfuse.io.text import read_strings

        arrays = read_strings(list(data[text]), names, config, own, length, path)
    else:
        return dict.fromkeys(data.column_names)  # none is an input: the caller says so
    labels = next((name for name in ("labels", "label") if name in data.column_names), None)
    if labels:
        arrays["labels"] = _rectangular("labels", data.with_format("numpy")[labels][:], config)
    return arrays


def _column_of(data: Any, kind: type) -> str | None:
    return next((name for name, feature in data.features.items() if isinstance(feature, kind)), None)


def _text_column(data: Any) -> str | None:
    texts = [
        name for name, feature in data.features.items() if getattr(feature, "dtype", None) in ("string", "large_string")
    ]
    return "text" if "text" in texts else texts[0] if len(texts) == 1 else None


def _ragged(array: Any) -> bool:
    return getattr(array, "dtype", None) == np.dtype(object) and all(np.ndim(row) == 1 for row in array)


def _rectangular(name: str, array: Any, config: Mapping[str, Any]) -> Any:
    """Lists of tokens of different lengths, padded at the end: ids with the padding token, masks with 0."""
    if not _ragged(array):
        return array
    fill = {"labels": IGNORED, "input_ids": setting(config, "pad_token_id", "text") or 0}.get(name, 0)
    padded: NDArray[np.int64] = np.full((len(array), max(map(len, array))), fill)
    for row, values in zip(padded, array, strict=True):
        row[: len(values)] = values
    return padded


def _add_mask(arrays: dict[str, Any], data: Any, names: Sequence[str]) -> None:
    if "input_ids" not in arrays or "attention_mask" in arrays or "attention_mask" not in names:
        return
    lengths = np.array([len(row) for row in data["input_ids"]])
    if len(set(lengths.tolist())) > 1:
        arrays["attention_mask"] = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
