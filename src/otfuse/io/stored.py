"""The stored tensors of a checkpoint, read one by one when they are asked for, and hashed on the way."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from typing import TYPE_CHECKING

import torch

from otfuse.errors import CheckpointError
from otfuse.io.checkpoint import finite
from otfuse.io.headers import unpickle
from otfuse.io.sentence import sentence_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from otfuse.io.checkpoint import Checkpoint
    from otfuse.io.headers import TensorInfo

_BLOCK = 1 << 23  # bytes read and hashed at a time: fits into the caches, and is large enough for any disk


class Stored:
    """Tensors by the names that the files have, in the types of the files; nothing read is kept.

    Bytes are read into memory of their own, never mapped: what is mapped counts as the process's until it is unmapped.
    ``digest`` tells what was read: every tensor is hashed when it is first read whole. Raises CheckpointError for values
    that are not finite, and for a file that changes while it is open. Several threads may read at once.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.infos, self._folder = checkpoint, checkpoint.tensors, checkpoint.folder
        if checkpoint.root is not None and checkpoint.in_sentence:
            self._folder = checkpoint.root
            self.infos = sentence_tensors(checkpoint.root, checkpoint.tensors, allow_pickle=checkpoint.pickled)
        self._handles: dict[str, int] = {}
        self._stamps: dict[str, tuple[int, ...]] = {}
        self._hashes: dict[str, bytes] = {}
        self._pickled: dict[str, dict[str, torch.Tensor]] = {}
        self._lock = threading.Lock()
        for file in sorted({info.file for info in self.infos.values()}):
            self._open(file)

    def inner(self, key: str) -> str:
        """The name that the tensor has in its file."""
        return key.partition(".")[2] if self.checkpoint.in_sentence else key

    def read(self, key: str) -> torch.Tensor:
        """A tensor whole."""
        info = self.infos[key]
        out = torch.empty(info.shape, dtype=info.dtype)
        flat, done = out.reshape(-1), 0
        for block in self.blocks(key):
            flat[done : done + len(block)] = block
            done += len(block)
        return out

    def rows(self, key: str, start: int, stop: int) -> torch.Tensor:
        """A run of places along the first axis."""
        info = self.infos[key]
        if start == 0 and stop == info.shape[0]:
            return self.read(key)
        if self.checkpoint.pickled:
            return self._pickle(info.file)[self.inner(key)][start:stop].clone()
        width = info.bytes // max(info.shape[0], 1)
        raw = self._bytes(info, start * width, (stop - start) * width)
        return self._checked(key, raw.view(info.dtype).reshape(stop - start, *info.shape[1:]))

    def blocks(self, key: str, elements: int | None = None) -> Iterator[torch.Tensor]:
        """Its values, flat, so many at a time."""
        info = self.infos[key]
        step = (elements or _BLOCK // info.dtype.itemsize) * info.dtype.itemsize
        digest = None if key in self._hashes else hashlib.sha256()
        for start in range(0, info.bytes, step):
            raw = self._bytes(info, start, min(step, info.bytes - start), key)
            if digest is not None:
                digest.update(memoryview(raw.numpy()))  # type: ignore[arg-type]  # arrays are buffers
            yield self._checked(key, raw.view(info.dtype))
        if digest is not None:
            self._hashes[key] = digest.digest()

    def hash(self) -> str:
        """SHA-256 (hex) over config.json and, by name, every tensor's name, type, shape and SHA-256: sharding does not matter.

        What was not read yet is read now. Raises CheckpointError if a file has changed since it was opened.
        """
        total = hashlib.sha256((self.checkpoint.folder / "config.json").read_bytes())
        for key, info in sorted(self.infos.items()):
            if key not in self._hashes:
                for _ in self.blocks(key):
                    pass
            total.update(json.dumps([key, str(info.dtype), list(info.shape), self._hashes[key].hex()]).encode())
        self.require_unchanged()
        return total.hexdigest()

    def require_unchanged(self) -> None:
        """CheckpointError if a file is no longer what it was when it was opened."""
        for file, before in self._stamps.items():
            try:
                now = _stamp(os.stat(self._path(file)))  # noqa: PTH116  # beside fstat
            except OSError:
                now = ()
            if now != before:
                raise self._changed(file)

    def close(self) -> None:
        """Give the files back."""
        while self._handles:
            os.close(self._handles.popitem()[1])
        self._pickled.clear()

    def _open(self, file: str) -> None:
        try:
            handle = os.open(self._path(file), os.O_RDONLY)
        except OSError as error:
            msg = f"checkpoint {self.checkpoint.name}: {file} cannot be read ({error.strerror}); check its permissions"
            raise CheckpointError(msg) from None
        self._handles[file], self._stamps[file] = handle, _stamp(os.fstat(handle))

    def _path(self, file: str) -> Path:
        return self._folder / file

    def _bytes(self, info: TensorInfo, start: int, count: int, key: str = "") -> torch.Tensor:
        if self.checkpoint.pickled:
            whole = self._pickle(info.file)[self.inner(key)].contiguous().reshape(-1)
            return whole.view(torch.uint8)[start : start + count].clone() if count else whole.view(torch.uint8)
        raw = torch.empty(count, dtype=torch.uint8)
        view, done = memoryview(raw.numpy()), 0  # type: ignore[arg-type]  # arrays are buffers
        while done < count:
            try:
                got = os.preadv(self._handles[info.file], [view[done:]], info.offset + start + done)
            except OSError as error:
                msg = (
                    f"checkpoint {self.checkpoint.name}: {info.file} cannot be read ({error.strerror}); check the disk"
                )
                raise CheckpointError(msg) from None
            if got == 0:
                raise self._changed(info.file)
            done += got
        return raw

    def _pickle(self, file: str) -> dict[str, torch.Tensor]:
        with self._lock:
            if file not in self._pickled:
                self._pickled[file] = unpickle(self._path(file))
            return self._pickled[file]

    def _checked(self, key: str, block: torch.Tensor) -> torch.Tensor:
        if finite(block):
            return block
        name, file = self.checkpoint.name, self.infos[key].file
        msg = f"checkpoint {name}: tensor {key!r} in {file} has values that are not finite; give a sound checkpoint"
        raise CheckpointError(msg)

    def _changed(self, file: str) -> CheckpointError:
        return CheckpointError(
            f"checkpoint {self.checkpoint.name}: {file} changed while it was read; wait until nothing writes there, then try again"
        )


def _stamp(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
