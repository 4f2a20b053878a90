"""Safetensors files that are laid out first and filled in any order: fused tensors are written when they are known.

The library itself writes a file in one go, with all of its tensors in memory; here a header is all that has to be known.
Format: 8 bytes little-endian header length, the header as JSON, then the data without gaps.
"""

from __future__ import annotations

import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import TYPE_CHECKING

import torch

from otfuse.errors import OutputError
from otfuse.io.checkpoint import finite
from otfuse.io.headers import DTYPES
from otfuse.io.keys import natural

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from concurrent.futures import Future
    from pathlib import Path

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_INDEX = "model.safetensors.index.json"
_DUE = 1 << 28  # bytes of a file after which the disk is sent what it was given: writing then goes on beside the work

Entry = tuple[torch.dtype, tuple[int, ...]]


class Shards:
    """Files in ``folder`` with room for the tensors of ``layout`` (file -> key -> type and shape).

    ``index`` says whether an index is written beside them; ``target`` is what the folder will be called;
    ``inner`` gives the name that a tensor has in its file. Raises OSError as the disk does.
    """

    def __init__(
        self,
        folder: Path,
        layout: Mapping[str, Mapping[str, Entry]],
        *,
        index: bool,
        target: Path,
        inner: Callable[[str], str] = str,
    ) -> None:
        self._folder, self._layout, self._index, self._target, self._inner = folder, layout, index, target, inner
        self._at: dict[str, tuple[int, int, Entry]] = {}
        self._handles: list[int] = []
        self._written: set[str] = set()
        self._owed: dict[int, int] = {}  # bytes by file that the disk was not sent yet
        self._disk = ThreadPoolExecutor(1)
        self._sent: list[Future[None]] = []
        try:
            for file, entries in layout.items():
                self._lay_out(folder / file, entries)
        except BaseException:
            self.abandon()  # an open file keeps a disk busy that could not hold it
            raise

    def write(self, key: str, blocks: Iterable[torch.Tensor]) -> None:
        """One tensor's values in order, cast to its type. OutputError if one is not finite there."""
        handle, offset, (dtype, shape) = self._at[key]
        begin = offset
        for block in blocks:
            made = block.detach().to("cpu", dtype).contiguous().reshape(-1)
            self._require_finite(key, block, made)
            view = memoryview(made.view(torch.uint8).numpy())  # type: ignore[arg-type]  # arrays are buffers
            while view:
                done = os.pwrite(handle, view, offset)
                offset, view = offset + done, view[done:]
            self._send(handle, made.nbytes)
        assert offset - begin == prod(shape) * dtype.itemsize, key  # the caller gives all of it
        self._written.add(key)

    def close(self) -> None:
        """Everything is there: the index, if there is one, and the files are closed."""
        assert self._written == set(self._at), sorted(set(self._at) - self._written)[:3]
        for sent in self._sent:
            sent.result()
        self.abandon()
        if self._index:
            counts = [(prod(shape), dtype.itemsize) for _, _, (dtype, shape) in self._at.values()]
            total = {"total_parameters": sum(n for n, _ in counts), "total_size": sum(n * size for n, size in counts)}
            where = {key: file for file, entries in self._layout.items() for key in map(self._inner, entries)}
            text = json.dumps({"metadata": total, "weight_map": where}, indent=2)
            (self._folder / _INDEX).write_text(text + "\n", encoding="utf-8")

    def abandon(self) -> None:
        """Close the files as they are."""
        self._disk.shutdown(cancel_futures=True)
        while self._handles:
            os.close(self._handles.pop())

    def _send(self, handle: int, count: int) -> None:
        self._owed[handle] = self._owed.get(handle, 0) + count  # of two threads' counts one may be lost: no harm
        if self._owed[handle] >= _DUE:
            self._owed[handle] = 0
            self._sent.append(self._disk.submit(os.fsync, handle))

    def _require_finite(self, key: str, given: torch.Tensor, made: torch.Tensor) -> None:
        if not finite(made):
            why = (
                "overflows in the type asked for; choose a wider --dtype"
                if finite(given)
                else "has values that are not finite; nothing was written"
            )
            raise OutputError(f"output {self._target}: tensor {key!r} {why}")

    def _lay_out(self, path: Path, entries: Mapping[str, Entry]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset, entries = (
            0,
            dict(sorted(entries.items(), key=lambda item: -item[1][0].itemsize)),
        )  # wide types first: aligned
        for key, (dtype, shape) in entries.items():
            size = prod(shape) * dtype.itemsize
            header[self._inner(key)] = {
                "dtype": _NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [offset, offset + size],
            }
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._handles.append(handle)
        os.pwrite(handle, struct.pack("<Q", len(text)) + text, 0)
        if hasattr(os, "posix_fallocate") and offset:  # a disk that is too small says so now
            os.posix_fallocate(handle, 8 + len(text), offset)
        for key, entry in entries.items():
            begin = header[self._inner(key)]["data_offsets"][0]  # type: ignore[index]
            self._at[key] = handle, 8 + len(text) + begin, entry


def layout(entries: Mapping[str, tuple[str, Entry]], shard_size: int | None) -> dict[str, dict[str, Entry]]:
    """File -> key -> entry, from ``key -> (its file in the anchor, entry)``: the anchor's sharding, or shards of that size.

    Files in sub-folders (parts of a model that are stored apart) keep their names and are not cut.
    """
    apart = {key: file for key, (file, _) in entries.items() if "/" in file}
    result: dict[str, dict[str, Entry]] = {}
    if shard_size is None:
        names = {key: file for key, (file, _) in entries.items()}
    else:
        names = _cut({key: entry for key, (_, entry) in entries.items() if key not in apart}, shard_size) | apart
    for key, (_, entry) in entries.items():
        result.setdefault(names[key], {})[key] = entry
    return dict(sorted(result.items()))


def _cut(entries: Mapping[str, Entry], size: int) -> dict[str, str]:
    from huggingface_hub.serialization._base import split_state_dict_into_shards_factory

    split = split_state_dict_into_shards_factory(
        {key: entries[key] for key in sorted(entries, key=natural)},  # the order in which transformers saves
        get_storage_size=lambda entry: prod(entry[1]) * entry[0].itemsize,
        filename_pattern="model{suffix}.safetensors",
        get_storage_id=lambda _entry: None,
        max_shard_size=size,
    )
    return dict(split.tensor_to_filename)
