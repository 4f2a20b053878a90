"""In which floating types a checkpoint is stored, tensor by tensor, and where its config says so."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

    from otfuse.io.checkpoint import Checkpoint


def working(checkpoints: Iterable[Checkpoint | None]) -> torch.dtype:
    """The type to compute in: float64 if any tensor is stored in it, else float32."""
    stored = {info.dtype for c in checkpoints if c is not None for info in c.tensors.values()}
    return torch.float64 if torch.float64 in stored else torch.float32


def of_model(model: nn.Module, anchor: Checkpoint | None, dtype: torch.dtype | None = None) -> dict[int, torch.dtype]:
    """The type in which each floating tensor of ``model`` is to be stored, by the tensor's ``id``.

    It is ``dtype`` if given, else the anchor's own of the tensor with that name, under any of its tied names. A tensor
    whose name the anchor's files lack (the library renamed it) gets the type that most stored values have. Without both,
    tensors keep their types and the table is empty.
    """
    state = {n: t for n, t in model.state_dict(keep_vars=True).items() if t.is_floating_point()}
    if dtype is not None:
        return {id(tensor): dtype for tensor in state.values()}
    stored = {n: i for n, i in anchor.tensors.items() if i.dtype.is_floating_point} if anchor is not None else {}
    if not stored:
        return {}
    counts = Counter[torch.dtype]()
    for info in stored.values():
        counts[info.dtype] += torch.Size(info.shape).numel()
    usual = counts.most_common(1)[0][0]
    prefix = f"{getattr(model, 'base_model_prefix', '') or '.'}."  # the library lets files leave it out, or add it
    kinds: dict[int, torch.dtype] = {}
    for name, tensor in state.items():
        found = next((n for n in (name, name.removeprefix(prefix), prefix + name) if n in stored), None)
        if found is not None:
            kinds[id(tensor)] = stored[found].dtype
    return {id(tensor): usual for tensor in state.values()} | kinds


def settled(config: Mapping[str, Any], like: Mapping[str, Any] | str) -> dict[str, Any]:
    """``config`` whose types, its parts' too, are those of another config (where it has them), or all the one named."""
    result = dict(config)
    for key, value in config.items():
        if key == "dtype":
            own = like if isinstance(like, str) else like.get("dtype") or like.get("torch_dtype")
            result[key] = own.removeprefix("torch.") if isinstance(own, str) else value
        elif isinstance(value, dict):
            part = like if isinstance(like, str) else like.get(key)
            result[key] = settled(value, part) if isinstance(part, (str, dict)) else value
    return result
