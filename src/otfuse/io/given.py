"""What the caller gives: modules or checkpoint folders, arrays or files."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from otfuse.core.dataset import Dataset
from otfuse.core.report import SourceInfo
from otfuse.errors import DataError, UsageError
from otfuse.evaluate.metrics import Asked
from otfuse.io import kinds
from otfuse.io.checkpoint import Checkpoint, load_model, open_checkpoint
from otfuse.io.data import from_arrays, load_data
from otfuse.io.text import find_tokenizer
from otfuse.io.tokenizers import compare, numbered

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Model = nn.Module | str | Path


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """``modules`` to work with, anchor first; ``checkpoints`` they came from (None for modules given as such).

    ``notes`` tell in what folders that are to be fused differ beside their weights.
    """

    modules: tuple[nn.Module, ...]
    names: tuple[str, ...]
    checkpoints: tuple[Checkpoint | None, ...]
    notes: tuple[str, ...] = ()

    def infos(self) -> tuple[SourceInfo, ...]:
        """Names and hashes for the report."""
        return tuple(
            SourceInfo(name, checkpoint.hash if checkpoint is not None else tensors_hash(module))
            for name, checkpoint, module in zip(self.names, self.checkpoints, self.modules, strict=True)
        )


def module(model: Model) -> nn.Module:
    """A module, loaded in float32 (float64 if it is stored so) if a folder was given."""
    return load([model]).modules[0]


def load(
    models: Sequence[Model],
    *,
    device: str = "cpu",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    to_fuse: bool = False,
) -> Loaded:
    """All models, those from folders in one type; folders are opened and checked before the first is loaded.

    Those that are ``to_fuse`` must number their tokens alike (MatchError).
    """
    opened: list[Checkpoint | None] = []
    for model in models:
        if isinstance(model, nn.Module):
            opened.append(None)
        elif isinstance(model, (str, Path)):
            opened.append(open_checkpoint(model, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code))
        else:
            raise UsageError(
                f"a model is an nn.Module or the path of a checkpoint folder, not a {type(model).__name__}"
            )
    together = [numbered(c) for c in opened if c is not None] if to_fuse and opened and opened[0] is not None else []
    notes = compare(together) if together else []
    modules, names = [], []
    for i, (model, checkpoint) in enumerate(zip(models, opened, strict=True)):
        if isinstance(model, nn.Module):
            modules.append(model)
            names.append(f"{type(model).__name__} {i}")
        elif checkpoint is not None:
            modules.append(load_model(checkpoint, device=device, dtype=kinds.working(opened)))
            names.append(checkpoint.name)
    return Loaded(tuple(modules), tuple(names), tuple(opened), tuple(notes))


def dataset(
    data: str | Path | Mapping[str, Any] | Dataset, loaded: Loaded, *, require_labels: bool = False, which: int = 0
) -> Dataset:
    """The data, read with the tokenizer or processor of one model (the first, if not told which) and checked against it."""
    if isinstance(data, Dataset):
        return data
    model, checkpoint = loaded.modules[which], loaded.checkpoints[which]
    names, config = input_names(model), settings(model, checkpoint)
    if isinstance(data, Mapping):
        return from_arrays(data, input_names=names or list(data), config=config, require_labels=require_labels)
    return load_data(
        data,
        input_names=names,
        config=config,
        folder=checkpoint.folder if checkpoint is not None else None,
        require_labels=require_labels,
        trust_remote_code=checkpoint is not None and checkpoint.trust_remote_code,
    )


def asked(data: str, loaded: Loaded) -> list[Asked]:
    """Every model with the data as it reads them, and its own special tokens; data that are the same are held once."""
    found: list[Asked] = []
    for which, model in enumerate(loaded.modules):
        with told_of(loaded.names[which], data):
            own = dataset(data, loaded, which=which)
        same = next((a.data for a in found if _equal(a.data, own)), own)
        found.append(Asked(model, same, **special_tokens(loaded, which)))
    return found


@contextmanager
def told_of(model: str, data: str) -> Iterator[None]:
    """What is wrong with the data for a model is told with the names of both."""
    try:
        yield
    except DataError as error:
        said = str(error)
        between = ": " if said.startswith(f"data {data}") else f", data {data}: "
        raise DataError(f"model {model}{between}{said}") from error


def _equal(one: Dataset, other: Dataset) -> bool:
    arrays = [{**d.inputs, **({} if d.labels is None else {"labels": d.labels})} for d in (one, other)]
    return arrays[0].keys() == arrays[1].keys() and all(np.array_equal(a, arrays[1][n]) for n, a in arrays[0].items())


def input_names(model: nn.Module) -> list[str]:
    """Inputs by the names that ``forward`` gives them."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind in kinds]


def settings(model: nn.Module, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """The model's configuration as plain values."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        return dict(config.to_dict())
    return checkpoint.config if checkpoint is not None else {}


def tensors_hash(model: nn.Module) -> str:
    """SHA-256 (hex) over names and values of all stored tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
        digest.update(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            if tensor.numel()
            else b""
        )
    return digest.hexdigest()


def special_tokens(loaded: Loaded, which: int = 0) -> dict[str, Any]:
    """``mask_token_id`` and ``special_ids`` of one checkpoint's tokenizer, nothing without one."""
    checkpoint = loaded.checkpoints[which]
    if checkpoint is None:
        return {}
    tokenizer = find_tokenizer(checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code)
    if tokenizer is None:
        return {}
    return {"mask_token_id": tokenizer.mask_token_id, "special_ids": tuple(tokenizer.all_special_ids)}
