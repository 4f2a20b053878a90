"""Models that go into a fusion, from folders or as modules: opened, checked against each other, their weights left where they lie."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from otfuse.core.report import SourceInfo
from otfuse.errors import CheckpointError, DataError, UsageError
from otfuse.evaluate.run import find_device
from otfuse.fusion.differences import described
from otfuse.fusion.sides import Parent, workable
from otfuse.io import kinds
from otfuse.io.checkpoint import load_model, model_class, open_checkpoint
from otfuse.io.describe import describe
from otfuse.io.given import dataset_for, tokens_of
from otfuse.io.keys import Keys, looks_wrapped
from otfuse.io.skeleton import FileWeights, settle, skeleton
from otfuse.io.stored import Stored
from otfuse.io.tokenizers import compare, numbered
from otfuse.program.export import stored as stored_tensors
from otfuse.program.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otfuse.core.dataset import Dataset
    from otfuse.fusion.differences import Described
    from otfuse.io.checkpoint import Checkpoint

    Model = nn.Module | str | Path


@dataclass(slots=True, eq=False)
class FileParent(Parent):
    """A parent whose weights are read from files. ``lacking`` are tensors of its head, which its files do not have."""

    stored: Stored = field(kw_only=True)
    keys: Keys = field(kw_only=True)


def given(module: nn.Module, name: str, *, to_fuse: bool = True) -> Parent:
    """A module of the caller's, as it is or, to be fused, in a type that can be computed in. UsageError if it has no weights then."""
    own = workable(module) if to_fuse else module
    tensors = dict(own.named_parameters(remove_duplicate=False)) | dict(own.named_buffers(remove_duplicate=False))
    return Parent(name, own, Weights({n: tensors[n] for n in stored_tensors(own)[0]}), described(module, name))


def opened(
    stores: Sequence[Stored], anchor: nn.Module | None = None, *, device: str = "cpu", plain: bool = False
) -> list[FileParent]:
    """Checkpoints as parents, computed with in float32 (float64 if any is stored so). Raises CheckpointError.

    The first is the anchor unless a module is. A source of the anchor's base class, or with a head where the anchor is
    that base, is read as the anchor's class. ``plain``: only averaged; where all files hold the same names and shapes, no
    class is needed for that.
    """
    alike = len({frozenset((k, i.shape) for k, i in stored.infos.items()) for stored in stores}) == 1
    if plain and alike and not any(map(looks_wrapped, stores[0].infos)):
        told = describe([stored.checkpoint for stored in stores])
        return [_unclassed(stored, own) for stored, own in zip(stores, told, strict=True)]
    dtype = kinds.working(stored.checkpoint for stored in stores)
    parents: list[FileParent] = []
    for stored in stores:
        joined = anchor is not None and _is_joined(anchor, stored.checkpoint)
        model = skeleton(stored.checkpoint, dtype, like=anchor if joined else None)
        parents.append(_parent(stored, model, dtype, device, joined=joined, first=anchor is None))
        anchor = model if anchor is None else anchor
    return parents


def _unclassed(stored: Stored, told: Described) -> FileParent:
    keys = Keys(plain={key: key for key in stored.infos})
    weights = FileWeights(stored, keys, torch.float32)
    return FileParent(stored.checkpoint.name, None, weights, told, stored=stored, keys=keys)


def _parent(
    stored: Stored, model: nn.Module, dtype: torch.dtype, device: str, *, joined: bool, first: bool
) -> FileParent:
    checkpoint = stored.checkpoint
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
    found = FileWeights(stored, keys, dtype, model, extra, device)
    return FileParent(
        checkpoint.name,
        model,
        found,
        described(model, checkpoint.name),
        lacking=frozenset(weights) if joined else frozenset(),
        notes=tuple(_told(checkpoint, model, keys, weights if joined else [], first=first)),
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


def _told(checkpoint: Checkpoint, model: nn.Module, keys: Keys, lacking: list[str], *, first: bool) -> list[str]:
    notes = []
    if keys.bare:
        key, bare = next(iter(keys.bare.items()))
        notes.append(
            f"{checkpoint.name}: {len(keys.bare)} tensors have names that a wrapper changed ({key!r} is {bare!r}); they were read "
            "without it"
        )
    if lacking:
        notes.append(
            f"{checkpoint.name}: has no {_listed(lacking)}, which {type(model).__name__} has; there the anchor's own are kept"
        )
    if keys.unexpected:
        done = "they go with the result as they are" if first else "left aside"
        kind = type(model).__name__
        notes.append(f"{checkpoint.name}: {kind} has no place for {_listed(keys.unexpected)} of its files; {done}")
    return notes


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _stand_in(tensor: torch.Tensor) -> torch.Tensor:
    """Values that no result will hold, for a forward pass through them to make sense."""
    chance = torch.Generator().manual_seed(0)
    made: torch.Tensor = torch.randn(tensor.shape, generator=chance, dtype=tensor.dtype) / max(*tensor.shape, 1) ** 0.5
    return made


def module_hash(model: Any) -> str:
    """SHA-256 (hex) over every stored tensor's name, type, shape and SHA-256, by name."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
        total.update(
            json.dumps([name, str(tensor.dtype), list(tensor.shape), hashlib.sha256(raw).hexdigest()]).encode()
        )
    return total.hexdigest()


class Family:
    """The models of one fusion, anchor first, and what they came from."""

    def __init__(
        self,
        models: Sequence[Model],
        *,
        device: str = "cpu",
        plain: bool = False,
        to_fuse: bool = True,
        allow_pickle: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        """Open everything and check it before the first weight is read. Raises CheckpointError, UsageError."""
        find_device(device)
        _require_once(models[1:])
        opened_ones = [_opened(m, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code) for m in models]
        together = [numbered(c) for c in opened_ones if c is not None]
        self.notes = compare(together) if len(together) > 1 and opened_ones[0] is not None else []
        self._stores = [None if c is None else Stored(c) for c in opened_ones]
        first, stores = models[0], [s for s in self._stores if s is not None]
        files = iter(
            opened(
                stores,
                first if isinstance(first, nn.Module) else None,
                device=device,
                plain=plain and len(stores) == len(models),
            )
        )
        self.models = models
        self.parents: list[Parent] = [
            given(model, f"{type(model).__name__} {i}", to_fuse=to_fuse)
            if isinstance(model, nn.Module)
            else next(files)
            for i, model in enumerate(models)
        ]

    def dataset(self, data: Any, *, used: bool = True) -> Dataset | None:
        """The data, read with the anchor's tokenizer or processor and checked against it; not read where nothing uses them."""
        if data is None:
            return None
        if not used and isinstance(data, (str, Path)):
            if not Path(data).exists():
                raise DataError(f"data {data}: no such file or folder; check the path")
            self.notes.append(f"data {data}: a plain average looks at no data; they were not read")
            return None
        stored = self._stores[0]
        return dataset_for(data, self.parents[0].module, None if stored is None else stored.checkpoint)

    def special_tokens(self) -> dict[str, Any]:
        """What the anchor's tokenizer says of its tokens: ``mask_token_id`` and ``special_ids``, nothing without one."""
        stored = self._stores[0]
        return tokens_of(None if stored is None else stored.checkpoint)

    @property
    def file_anchor(self) -> FileParent:
        """The anchor, where it is a checkpoint."""
        assert isinstance(self.parents[0], FileParent)  # the caller knows
        return self.parents[0]

    @property
    def anchor(self) -> Parent:
        """Whose class, names and basis the result has."""
        return self.parents[0]

    def infos(self) -> tuple[SourceInfo, ...]:
        """Names and hashes for the report. CheckpointError if a file has changed since it was opened."""
        return tuple(
            SourceInfo(parent.name, stored.hash() if stored is not None else module_hash(model))
            for parent, model, stored in zip(self.parents, self.models, self._stores, strict=True)
        )

    def close(self) -> None:
        """Give the files back."""
        for stored in self._stores:
            if stored is not None:
                stored.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _require_once(sources: Sequence[Model]) -> None:
    """CheckpointError if a folder is given twice: most likely a slip, and its weights would count twice."""
    seen = set()
    for model in sources:
        if isinstance(model, (str, Path)):
            place = Path(model).resolve() if Path(model).is_dir() else str(model)
            if place in seen:
                msg = f"checkpoint {model}: given twice as a source, so that it would count twice; give it once, and --set weights=[...] if it should count more"
                raise CheckpointError(msg)
            seen.add(place)


def _opened(model: Any, *, allow_pickle: bool, trust_remote_code: bool) -> Checkpoint | None:
    if isinstance(model, nn.Module):
        return None
    if isinstance(model, (str, Path)):
        return open_checkpoint(model, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    raise UsageError(f"a model is an nn.Module or the path of a checkpoint folder, not a {type(model).__name__}")
