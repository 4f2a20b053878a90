"""Values that wait for their next turn: in memory while they are small, else in a temporary folder."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Self

import torch
from torch.utils._pytree import tree_leaves

from otfuse.errors import OutputError

IN_MEMORY = 1 << 30  # bytes


class Waiting:
    """Tables of values by key. What would exceed ``most`` bytes altogether lies on disk; it comes back bit for bit."""

    def __init__(self, most: int = IN_MEMORY) -> None:
        self._most, self._held = most, 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._memory: dict[tuple[int, ...], tuple[int, dict[str, Any]]] = {}
        self._files: dict[tuple[int, ...], Path] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def put(self, key: tuple[int, ...], values: dict[str, Any]) -> None:
        """Keep a table until it is taken."""
        size = _bytes(values)
        if self._held + size <= self._most:
            self._held += size
            self._memory[key] = size, values
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="otfuse-")
        path = self._files[key] = Path(self._folder.name) / "-".join(map(str, key))
        try:
            torch.save(values, path)
        except (OSError, RuntimeError) as error:  # PyTorch's own writer raises RuntimeError where the disk is full
            raise OutputError(
                f"{path.parent}: values that wait between two layers cannot be written ({error}); give fewer inputs, or set "
                "TMPDIR to a folder with more room"
            ) from None

    def take(self, key: tuple[int, ...]) -> dict[str, Any]:
        """The table put last under that key, which is kept no longer."""
        if key in self._memory:
            size, held = self._memory.pop(key)
            self._held -= size
            return held
        values: dict[str, Any] = torch.load(self._files[key], weights_only=True)
        return values


def _bytes(values: dict[str, Any]) -> int:
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
    memory = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(memory.values())
