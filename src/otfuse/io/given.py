"""What the caller gives: modules or checkpoint folders, arrays or files."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from otfuse.core.dataset import Dataset
from otfuse.errors import DataError, UsageError
from otfuse.io import kinds
from otfuse.io.checkpoint import Checkpoint, load_model, open_checkpoint
from otfuse.io.data import from_arrays, load_data
from otfuse.io.text import find_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from otfuse.evaluate.metrics import Asked

    Model = nn.Module | str | Path


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """``modules`` to work with, anchor first; ``checkpoints`` they came from (None for modules given as such)."""

    modules: tuple[nn.Module, ...]
    names: tuple[str, ...]
    checkpoints: tuple[Checkpoint | None, ...]


def load(
    models: Sequence[Model],
    *,
    device: str = "cpu",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Loaded:
    """All models, those from folders in one type; folders are opened and checked before the first is loaded."""
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
    modules, names = [], []
    for i, (model, checkpoint) in enumerate(zip(models, opened, strict=True)):
        if isinstance(model, nn.Module):
            modules.append(model)
            names.append(f"{type(model).__name__} {i}")
        elif checkpoint is not None:
            modules.append(load_model(checkpoint, device=device, dtype=kinds.working(opened)))
            names.append(checkpoint.name)
    return Loaded(tuple(modules), tuple(names), tuple(opened))


def dataset(
    data: str | Path | Mapping[str, Any] | Dataset, loaded: Loaded, *, require_labels: bool = False, which: int = 0
) -> Dataset:
    """The data, read with the tokenizer or processor of one model (the first, if not told which) and checked against it."""
    return dataset_for(data, loaded.modules[which], loaded.checkpoints[which], require_labels=require_labels)


def dataset_for(
    data: str | Path | Mapping[str, Any] | Dataset,
    model: nn.Module,
    checkpoint: Checkpoint | None,
    *,
    require_labels: bool = False,
) -> Dataset:
    """The data, read with the tokenizer or processor of this model and checked against it."""
    if isinstance(data, Dataset):
        return data
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
    from otfuse.evaluate.metrics import Asked  # its library is slow to import, and fusing needs it not

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


def special_tokens(loaded: Loaded, which: int = 0) -> dict[str, Any]:
    """``mask_token_id`` and ``special_ids`` of one checkpoint's tokenizer, nothing without one."""
    return tokens_of(loaded.checkpoints[which])


def tokens_of(checkpoint: Checkpoint | None) -> dict[str, Any]:
    """``mask_token_id`` and ``special_ids`` of a checkpoint's tokenizer, nothing without one."""
    if checkpoint is None:
        return {}
    tokenizer = find_tokenizer(checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code)
    if tokenizer is None:
        return {}
    return {"mask_token_id": tokenizer.mask_token_id, "special_ids": tuple(tokenizer.all_special_ids)}
