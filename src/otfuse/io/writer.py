"""Writing a checkpoint whole or not at all: into a hidden folder beside the target, which is then renamed."""

from __future__ import annotations

import copy
import errno
import json
import math
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from otfuse.errors import OutputError, UsageError
from otfuse.io import kinds
from otfuse.io.checkpoint import finite, load_model, open_checkpoint
from otfuse.io.companions import copy_companions
from otfuse.io.quiet import quiet
from otfuse.io.staging import nearest, staged, sweep, try_writing
from otfuse.io.switches import restored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from otfuse.io.checkpoint import Checkpoint

_SHARD_SIZE = re.compile(r"([1-9][0-9]{0,8})\s*([KMGT])(I?)B", re.IGNORECASE)


def check_target(out: Path, *, overwrite: bool = False, need: int = 0, beside: Sequence[str | Path] = ()) -> None:
    """Refuse, before long work, a place where ``need`` bytes could not be written as ``out``; leaves nothing behind.

    ``overwrite`` allows a folder that holds a checkpoint, and no other. ``beside`` are the models that are read: ``out`` may
    not lie inside one of them, nor hold one. Raises :class:`OutputError`.
    """
    for model in beside:
        _require_apart(out, Path(model))
    sweep(out)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"output {out}: a file of that name exists; choose another --out")
    try:
        if out.is_dir() and any(out.iterdir()) and not (overwrite and (out / "config.json").is_file()):
            raise OutputError(f"output {out}: the folder is not empty; choose another --out, or empty it")
        parent = nearest(out)
        if not parent.is_dir():
            raise OutputError(f"output {out}: {parent} is a file, not a folder; choose another --out")
        try_writing(out)
        free = shutil.disk_usage(parent).free
    except OSError as error:
        raise OutputError(_sentence(out, error)) from None
    if free < need:
        raise OutputError(
            f"output {out}: {need / 1e9:.2g} GB needed, {free / 1e9:.2g} GB free; free some space or choose another --out"
        )


def _require_apart(out: Path, model: Path) -> None:
    if not model.is_dir():
        return
    ours, theirs = out.resolve(), model.resolve()
    if ours == theirs or theirs in ours.parents:
        where = "is a model that goes in" if ours == theirs else f"lies inside {model}, which goes in"
        raise OutputError(f"output {out}: {where}; choose another --out")
    if ours in theirs.parents:
        raise OutputError(f"output {out}: holds {model}, which goes in; choose another --out")


def floating(name: str | None) -> torch.dtype | None:
    """The floating type of that name, None for None; UsageError otherwise."""
    kinds = {
        str(kind).removeprefix("torch."): kind for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    }
    if name is not None and name not in kinds:
        raise UsageError(f"--dtype {name}: no such floating type; allowed: {', '.join(kinds)}")
    return kinds[name] if name is not None else None


def check_shard_size(size: str | None) -> None:
    """Refuse anything but None or a size such as ``5GB``; raises :class:`UsageError`."""
    if size is not None and not _SHARD_SIZE.fullmatch(size.strip()):
        raise UsageError(
            f"shard size {size!r}: write a whole number and one of KB, MB, GB, TB, KiB, MiB, GiB, TiB, for example 5GB"
        )


def shard_bytes(size: str) -> int:
    """Bytes of a size that :func:`check_shard_size` allows: transformers itself reads no KiB."""
    number, unit, binary = re.findall(_SHARD_SIZE, size)[0]
    step, steps = 1024 if binary else 1000, "KMGT".index(unit.upper()) + 1
    return int(number) * math.prod([step] * steps)


def write_checkpoint(
    out: str | Path,
    model: nn.Module,
    anchor: Checkpoint | None,
    *,
    dtype: torch.dtype | None = None,
    shard_size: str | None = None,
    files: Mapping[str, str | Callable[[], str]] | None = None,
    overwrite: bool = False,
) -> None:
    """Write ``model`` as a plain checkpoint at ``out``: a kill at any moment leaves either nothing or the whole.

    Keys, ties and sharding are those of the model's own ``save_pretrained``; floating tensors have ``dtype``, else the
    types of the anchor's tensors, one by one, else their own. Tokenizer, processor and generation files come from the anchor's folder;
    ``files`` are further texts by name, or what gives them once all before them is written. A module without ``save_pretrained`` gives one model.safetensors in which tied
    tensors are stored once. ``model`` is not changed. Raises :class:`OutputError`, :class:`UsageError`.
    """
    target = Path(out)
    check_shard_size(shard_size)
    types = kinds.of_model(model, anchor, dtype)
    check_target(target, overwrite=overwrite, need=_bytes(model, types))
    cast = _cast(model, types, target)
    with one_sentence(target), staged(target, replace=overwrite) as folder:
        _save(cast, folder, shard_size)
        if anchor is not None:
            _settle_config(folder, anchor, dtype)
            copy_companions(anchor.root or anchor.folder, folder)
        for name, text in (files or {}).items():
            (folder / name).write_text(text if isinstance(text, str) else text(), encoding="utf-8")


def holds(out: Path, model: nn.Module) -> bool:
    """Whether the checkpoint at ``out`` is ``model``, in the types in which it was stored; CheckpointError if it is none."""
    there = open_checkpoint(out)
    types, own = kinds.of_model(model, there), model.state_dict(keep_vars=True)
    stored = load_model(there, dtype=kinds.working([there])).state_dict()
    return stored.keys() == own.keys() and all(
        torch.equal(t, own[name].detach().to(types.get(id(own[name]), t.dtype)).to(t.dtype))
        for name, t in stored.items()
    )


def _save(model: nn.Module, folder: Path, shard_size: str | None) -> None:
    save: Any = getattr(model, "save_pretrained", None)
    if save is None:
        from safetensors.torch import save_model

        save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
        return
    with quiet():
        save(folder, **({} if shard_size is None else {"max_shard_size": shard_bytes(shard_size)}))


def _settle_config(folder: Path, anchor: Checkpoint, dtype: torch.dtype | None) -> None:
    """The library writes the type of the model's first tensor; of several types, the anchor's config knows the one meant."""
    path = folder / "config.json"
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    own = restored(config, anchor.config)
    wanted = kinds.settled(own, anchor.config if dtype is None else str(dtype).removeprefix("torch."))
    if wanted != config:
        path.write_text(json.dumps(wanted, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _bytes(model: nn.Module, types: Mapping[int, torch.dtype]) -> int:
    return sum(p.numel() * types.get(id(p), p.dtype).itemsize for p in model.parameters())


def _cast(model: nn.Module, types: Mapping[int, torch.dtype], out: Path) -> nn.Module:
    """A copy of ``model`` whose floating parameters and stored buffers have these types; those that have them are shared.

    The memo of ``deepcopy`` holds the cast tensors beforehand, so no tensor is copied in its old type and ties stay ties.
    """
    memo: dict[int, Any] = {}
    stored = model.state_dict(keep_vars=True)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        new: torch.Tensor = tensor
        if (dtype := types.get(id(tensor), tensor.dtype)) != tensor.dtype:
            new = tensor.detach().to(dtype)
            new = nn.Parameter(new, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
        if name in stored and not finite(new):
            why = (
                "overflows in the type asked for; choose a wider --dtype"
                if finite(tensor)
                else "has values that are not finite; nothing was written"
            )
            raise OutputError(f"output {out}: tensor {name!r} {why}")
        memo[id(tensor)] = new
    return copy.deepcopy(model, memo)


@contextmanager
def one_sentence(out: Path) -> Iterator[None]:
    """What the disk refuses, as an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(_sentence(out, error)) from None
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))  # safetensors wraps the operating system's error as text
        if number is None:
            raise
        raise OutputError(_sentence(out, OSError(int(number[1]), os.strerror(int(number[1]))))) from None


def _sentence(out: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"output {out}: the disk is full ({error.strerror}), nothing was written; free some space or choose another --out"
    return f"output {out}: cannot be written there ({error.strerror}), nothing was written; choose another --out"
