"""Models that go into a fusion, from folders or as modules: opened, checked against each other, their weights left where they lie."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from otfuse.errors import CheckpointError, UsageError
from otfuse.fusion.sides import Parent, workable
from otfuse.io import kinds
from otfuse.io.checkpoint import load_model, model_class
from otfuse.io.keys import Keys
from otfuse.io.skeleton import FileWeights, settle, skeleton
from otfuse.program.export import stored_names
from otfuse.program.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otfuse.io.checkpoint import Checkpoint
    from otfuse.io.stored import Stored


@dataclass(slots=True, eq=False)
class FileParent(Parent):
    """A parent whose weights are read from files. ``lacking`` are tensors of its head, which its files do not have."""

    stored: Stored | None = None
    keys: Keys = field(default_factory=Keys)


def given(module: nn.Module, name: str) -> Parent:
    """A module of the caller's."""
    own = workable(module)
    tensors: Mapping[str, torch.Tensor] = dict(own.named_parameters()) | dict(own.named_buffers())
    held = own.state_dict(keep_vars=True)
    return Parent(name, own, Weights({n: held.get(n, tensors.get(n)) for n in stored_names(own)}))


def opened(checkpoints: Sequence[Checkpoint], stores: Sequence[Stored], dtype: torch.dtype) -> list[FileParent]:
    """Checkpoints as parents, anchor first. Raises CheckpointError.

    A source of the anchor's base class, or with a head where the anchor is that base, is read as the anchor's class.
    """
    anchor = _parent(checkpoints[0], stores[0], skeleton(checkpoints[0], dtype), dtype)
    assert anchor.module is not None
    parents = [anchor]
    for checkpoint, stored in zip(checkpoints[1:], stores[1:], strict=True):
        joined = _is_joined(anchor.module, checkpoint)
        model = skeleton(checkpoint, dtype, type(anchor.module) if joined else None)
        parents.append(_parent(checkpoint, stored, model, dtype, joined=joined))
    return parents


def _parent(
    checkpoint: Checkpoint, stored: Stored, model: nn.Module, dtype: torch.dtype, *, joined: bool = False
) -> FileParent:
    keys = settle(model, stored, joined=joined)
    state = model.state_dict(keep_vars=True)
    held = {id(state[name]) for name in (*keys.plain, *keys.groups)}
    absent = {name: state[name] for name in keys.missing if id(state[name]) not in held}
    weights = [name for name, tensor in absent.items() if isinstance(tensor, nn.Parameter)]
    extra: dict[str, torch.Tensor] = {name: tensor.detach() for name, tensor in absent.items()}
    if joined:
        extra |= {name: _stand_in(extra[name]) for name in weights}
    elif weights:  # values that the library makes up, such as sines by place
        made = load_model(checkpoint, dtype=dtype).state_dict()
        extra |= {name: made[name] for name in weights}
    found = FileWeights(model, stored, keys, dtype, extra)
    return FileParent(
        checkpoint.name,
        model,
        found,
        lacking=frozenset(weights) if joined else frozenset(),
        notes=tuple(_told(checkpoint, model, keys, weights if joined else [])),
        stored=stored,
        keys=keys,
    )


def _is_joined(anchor: nn.Module, checkpoint: Checkpoint) -> bool:
    """Whether the source is what the anchor's head stands on, or has a head where the anchor has none."""
    theirs: Any = model_class(checkpoint)
    prefix = getattr(anchor, "base_model_prefix", "")
    same_family = prefix and getattr(theirs, "base_model_prefix", None) == prefix
    kind = getattr(getattr(anchor, "config", None), "model_type", None)
    if not same_family or theirs is type(anchor) or checkpoint.config.get("model_type") != kind:
        return False
    return not hasattr(anchor, prefix) or isinstance(getattr(anchor, prefix), theirs)


def _told(checkpoint: Checkpoint, model: nn.Module, keys: Keys, lacking: list[str]) -> list[str]:
    notes = []
    if keys.unwrapped:
        prefixes = ", ".join(repr(p) for p in sorted(keys.unwrapped))
        notes.append(f"{checkpoint.name}: the names of its tensors were read without {prefixes}, which a wrapper put there")
    if lacking:
        notes.append(
            f"{checkpoint.name}: has no {_listed(lacking)}, which {type(model).__name__} has; there the anchor's own are kept"
        )
    if keys.unexpected:
        notes.append(
            f"{checkpoint.name}: {type(model).__name__} has no place for {_listed(keys.unexpected)} of its files; left aside"
        )
    return notes


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _stand_in(tensor: torch.Tensor) -> torch.Tensor:
    """Values that no result will hold, for a forward pass through them to make sense."""
    chance = torch.Generator().manual_seed(0)
    return torch.randn(tensor.shape, generator=chance, dtype=tensor.dtype) / max(tensor.shape[-1:] or (1,)) ** 0.5


def module_hash(model: nn.Module) -> str:
    """SHA-256 (hex) over every stored tensor's name, type, shape and SHA-256, by name."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape), hashlib.sha256(raw).hexdigest()]).encode())
    return total.hexdigest()


def require_some(models: Sequence[Any]) -> None:
    """UsageError for what is neither a module nor a path."""
    for model in models:
        if not isinstance(model, nn.Module) and not hasattr(model, "__fspath__") and not isinstance(model, str):
            raise UsageError(f"a model is an nn.Module or the path of a checkpoint folder, not a {type(model).__name__}")


__all__ = ["CheckpointError", "FileParent", "given", "kinds", "module_hash", "opened", "require_some"]
