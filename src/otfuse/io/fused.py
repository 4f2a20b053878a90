"""Writing a fused checkpoint tensor by tensor, under the anchor's own names and in its own files: whole or not at all."""

from __future__ import annotations

import json
import shutil
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from otfuse.io.companions import copy_companions
from otfuse.io.keys import Group, reverted
from otfuse.io.shards import Shards, layout
from otfuse.io.staging import staged
from otfuse.io.writer import check_target, one_sentence, shard_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from otfuse.io.checkpoint import Checkpoint
    from otfuse.io.parents import FileParent
    from otfuse.io.shards import Entry


class FusedFiles:
    """Takes fused tensors by the names that the anchor's model has, and puts them where its files have them.

    What is not given (counters, tables that nobody trained, tensors that its class does not use) is the anchor's own.
    ``texts`` are further files by name, each with what gives its text once all before it is written.
    """

    def __init__(self, anchor: FileParent, shards: Shards) -> None:
        self._anchor, self._shards = anchor, shards
        self._left = set(anchor.stored.infos)
        self.texts: dict[str, Callable[[], str]] = {}
        self._halves: dict[int, dict[str, torch.Tensor]] = {}
        self._halving = threading.Lock()  # two threads give tensors at once

    def __call__(self, name: str, blocks: Iterable[torch.Tensor]) -> None:
        """All values of one tensor, flat and in order."""
        names = self._anchor.weights.alike[name]
        keys = list(dict.fromkeys(k for n in names if (k := self._anchor.keys.plain.get(n)) is not None))
        group = next((self._anchor.keys.groups[n] for n in names if n in self._anchor.keys.groups), None)
        if group is not None:
            self._put_group(name, group, blocks)
        elif len(keys) == 1:
            self._put(keys[0], blocks)
        elif keys:
            whole = list(blocks)
            for key in keys:
                self._put(key, whole)

    def finish(self) -> None:
        """The rest from the anchor's files."""
        for key in sorted(self._left):
            self._put(key, self._anchor.stored.blocks(key))
        self._shards.close()

    def _put(self, key: str, blocks: Iterable[torch.Tensor]) -> None:
        self._shards.write(self._anchor.keys.bare.get(key, key), blocks)
        self._left.discard(key)

    def _put_group(self, name: str, group: Group, blocks: Iterable[torch.Tensor]) -> None:
        own = next(n for n in self._anchor.weights.alike[name] if n in group.names)
        whole = torch.cat(list(blocks)).reshape(self._anchor.weights.shape(name))
        with self._halving:
            held = self._halves.setdefault(id(group), {})
            held[own] = whole
            if held.keys() < set(group.names):
                return
            del self._halves[id(group)]
        for key, tensor in reverted(group, self._anchor.module, held).items():
            self._put(key, [tensor])


@contextmanager
def fused_files(
    out: Path,
    anchor: FileParent,
    *,
    dtype: torch.dtype | None,
    shard_size: str | None,
) -> Iterator[FusedFiles]:
    """The place to put fused tensors; on leaving, all else of the anchor's folder joins them, and its ``texts`` come last.

    Until then everything lies in a hidden folder beside ``out``, which vanishes on any exception. Raises OutputError.
    """
    checkpoint, entries = anchor.stored.checkpoint, _entries(anchor, dtype)
    check_target(out, need=sum(torch.Size(shape).numel() * kind.itemsize for _, (kind, shape) in entries.values()))
    files = layout(entries, None if shard_size is None else shard_bytes(shard_size))
    with one_sentence(out), staged(out) as folder:
        cut = len([file for file in files if "/" not in file]) > 1
        shards = Shards(folder, files, index=cut, target=out, inner=anchor.stored.inner)
        try:
            sink = FusedFiles(anchor, shards)
            yield sink
            sink.finish()
        finally:
            shards.abandon()
        write_config(folder / _place(checkpoint), checkpoint, dtype)
        copy_companions(checkpoint.root or checkpoint.folder, folder)
        for name, text in sink.texts.items():
            (folder / name).write_text(text(), encoding="utf-8")


def _place(checkpoint: Checkpoint) -> Path:
    """Where the config lies below the folder that was given."""
    return checkpoint.folder.relative_to(checkpoint.root or checkpoint.folder)


def _entries(anchor: FileParent, dtype: torch.dtype | None) -> dict[str, tuple[str, Entry]]:
    """Every stored tensor by the key under which it is written, with its file and type."""
    return {
        anchor.keys.bare.get(key, key): (
            _file(info.file),
            (dtype if dtype is not None and info.dtype.is_floating_point else info.dtype, info.shape),
        )
        for key, info in anchor.stored.infos.items()
    }


def _file(name: str) -> str:
    """A pickle's counterpart."""
    return (
        name
        if name.endswith(".safetensors")
        else name.replace("pytorch_model", "model", 1).rpartition(".")[0] + ".safetensors"
    )


def write_config(folder: Path, anchor: Checkpoint, dtype: torch.dtype | None) -> None:
    """The anchor's config.json as it is, or with another type in it."""
    if dtype is None:
        shutil.copyfile(anchor.folder / "config.json", folder / "config.json")
        return
    config = _typed(anchor.config, str(dtype).removeprefix("torch."))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _typed(config: Any, name: str) -> Any:
    if not isinstance(config, dict):
        return config
    return {key: name if key in ("dtype", "torch_dtype") else _typed(value, name) for key, value in config.items()}
