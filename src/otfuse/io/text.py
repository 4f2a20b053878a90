"""Text as token ids, with the checkpoint's own tokenizer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from otfuse.errors import DataError
from otfuse.io.companions import NOT_TRUSTED, names_code
from otfuse.io.fit import classes, positions, shift_right
from otfuse.io.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from otfuse.io.companions import Own

    Arrays = dict[str, NDArray[np.generic]]

_TOKENIZER = ("tokenizer*", "vocab*", "merges*", "spiece*", "*.model", "*.spm", "*.tiktoken", "*.bpe")
_BLOCK = 128  # tokens, unless the model takes fewer or the caller says otherwise


def read_text(path: Path, names: Sequence[str], config: Mapping[str, Any], own: Own, length: int | None) -> Arrays:
    """The text in blocks of equal length, each between the tokenizer's own special tokens; a last short block is dropped.

    ``labels`` are the tokens themselves, unless the model is a classifier; a decoder reads them shifted right by one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"data {path}: not text in UTF-8; convert the file") from None
    tokenizer = _tokenizer(own, path)
    length = _length(tokenizer, config, length, path)
    with quiet():
        before, after = _special(tokenizer)
        body = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)
    if not text.strip() or not body.size:
        raise DataError(f"data {path}: the text is empty; give some text")
    if tokenizer.unk_token_id is not None and (body == tokenizer.unk_token_id).all():
        raise DataError(
            f"data {path}: the tokenizer in {own.folder} knows no word of the text; check its vocabulary files"
        )
    size = min(length - len(before) - len(after), body.size)
    if size < 1:
        raise DataError(
            f"data {path}: blocks of {length} tokens leave no place beside special tokens; give a greater length"
        )
    blocks = body[: body.size // size * size].reshape(-1, size)
    ids = np.pad(blocks, ((0, 0), (len(before), len(after))))
    ids[:, : len(before)] = before
    ids[:, ids.shape[1] - len(after) :] = after
    return _named(ids, np.ones_like(ids), names, config)


def read_strings(
    texts: list[str],
    names: Sequence[str],
    config: Mapping[str, Any],
    own: Own,
    length: int | None,
    path: Path,
) -> Arrays:
    """One example per string, cut to the length that the model takes and padded to the longest."""
    tokenizer = _tokenizer(own, path)
    length = _length(tokenizer, config, length, path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked out, so any token serves
    with quiet():
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=length)
    ids, mask = np.array(encoded["input_ids"]), np.array(encoded["attention_mask"])
    return _named(ids, mask, names, config)


def _named(ids: NDArray[Any], mask: NDArray[Any], names: Sequence[str], config: Mapping[str, Any]) -> Arrays:
    arrays: Arrays = {"input_ids": ids}
    if "attention_mask" in names:
        arrays["attention_mask"] = mask
    if classes(config) is None:
        arrays["labels"] = np.where(mask == 1, ids, -100)
        if config.get("is_encoder_decoder") and "decoder_input_ids" in names:
            arrays["decoder_input_ids"] = shift_right(arrays["labels"], config)
    return arrays


def _tokenizer(own: Own, path: Path) -> Any:
    if (folder := own.folder) is None:
        raise DataError(
            f"data {path}: text needs a tokenizer, and this model has no folder; give arrays of 'input_ids'"
        )
    tokenizer = find_tokenizer(folder, trust_remote_code=own.trusted)
    if tokenizer is None and not own.trusted and names_code(folder / "tokenizer_config.json"):
        raise DataError(f"data {path}: text needs a tokenizer, and that in {folder} {NOT_TRUSTED}")
    if tokenizer is None and (barred := [p.name for p in folder.iterdir() if not os.access(p, os.R_OK)]):
        raise DataError(
            f"data {path}: text needs a tokenizer, and {barred[0]} in {folder} cannot be read (Permission denied); "
            "check its permissions"
        )
    if tokenizer is None:
        raise DataError(
            f"data {path}: text needs a tokenizer, and {folder} has none that can be read; add its files or give arrays of 'input_ids'"
        )
    return tokenizer


def find_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The checkpoint's own tokenizer, or None if it has none that can be read."""
    if not any(path.match(pattern) for path in folder.iterdir() for pattern in _TOKENIZER):
        return None  # asked without files, transformers makes a tokenizer that knows no word
    try:
        with quiet():
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception:  # noqa: BLE001 - whatever absent or foreign files make transformers raise
        return None


def _special(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    inner, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return whole[:start], whole[start + len(inner) :]
    return [], []


def _length(tokenizer: Any, config: Mapping[str, Any], asked: int | None, path: Path) -> int:
    bounds = [n for n in (positions(config, "text"), tokenizer.model_max_length) if isinstance(n, int)]
    most = min(bounds, default=_BLOCK if asked is None else asked)
    if asked is not None and not 1 <= asked <= most:
        raise DataError(
            f"data {path}: blocks of {asked} tokens asked for, the model takes 1 to {most}; choose another length"
        )
    return min(_BLOCK, most) if asked is None else asked
