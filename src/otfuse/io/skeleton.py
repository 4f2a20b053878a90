"""A checkpoint's model without its weights: the class with its config, its stored tensors never filled nor touched.

Memory that nobody wrote to costs nothing, whatever its size. Buffers that are not stored have their values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from otfuse.errors import CheckpointError
from otfuse.io.checkpoint import first_line, model_class, require_keys
from otfuse.io.keys import Keys, converted, resolve
from otfuse.io.quiet import quiet
from otfuse.io.sentence import TRANSFORMER, sentence_model
from otfuse.io.switches import loading
from otfuse.program.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from otfuse.io.checkpoint import Checkpoint
    from otfuse.io.keys import Group
    from otfuse.io.stored import Stored

# What a config says of parts that the files of a base need not have: there the anchor's is followed.
_OF_THE_HEAD = ("tie_word_embeddings", "is_encoder_decoder")


def skeleton(checkpoint: Checkpoint, dtype: torch.dtype, *, like: nn.Module | None = None) -> nn.Module:
    """The model in evaluation mode and in ``dtype``, its stored tensors uninitialised, of the class of ``like`` if given.

    Of its parts it then has as many as ``like``. Raises CheckpointError if transformers cannot make it.
    """
    from transformers import AutoConfig, GenerationConfig
    from transformers.initialization import no_init_weights

    wanted: Any = model_class(checkpoint) if like is None else type(like)
    code = {"trust_remote_code": True} if checkpoint.trust_remote_code else {}
    try:
        with quiet(), no_init_weights():
            named = checkpoint.tensors if like is None else like.state_dict()  # parts that a class may be built without
            chosen = loading(wanted, checkpoint.config, checkpoint.folder, named)
            reader = getattr(wanted, "config_class", None) or AutoConfig
            config = chosen.pop("config", None) or reader.from_pretrained(
                checkpoint.folder, local_files_only=True, **code
            )
            if like is not None:
                for key in _OF_THE_HEAD:
                    setattr(config, key, getattr(like.config, key, None))
            generation = chosen.pop("generation_config", None)
            make = wanted._from_config if issubclass(wanted, nn.Module) else wanted.from_config  # noqa: SLF001  # what it calls
            model = make(config, dtype=dtype, **(chosen if issubclass(wanted, nn.Module) else code))
        with quiet():
            model.tie_weights()
            if generation is None and (checkpoint.folder / "generation_config.json").is_file():
                model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder, local_files_only=True)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a config makes transformers raise
        msg = f"checkpoint {checkpoint.name}: {wanted.__name__} cannot be made ({first_line(error)}); check its config.json"
        raise CheckpointError(msg) from None
    if checkpoint.root is not None and checkpoint.in_sentence:
        model = sentence_model(checkpoint.root, model)
    made: nn.Module = model.eval()
    return made


class FileWeights(Weights):
    """The stored tensors of a model, read from its files by the names that the model has, in ``dtype``.

    ``keys`` tells where they lie; names that share one tensor of the model share its place. Without a model the names are
    those of the files. ``extra`` holds tensors that the files do not have. Raises CheckpointError as reading does.
    """

    def __init__(
        self,
        stored: Stored,
        keys: Keys,
        dtype: torch.dtype,
        model: nn.Module | None = None,
        extra: Mapping[str, torch.Tensor] | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__(extra or {})
        self._stored, self._dtype, self._model, self._device = stored, dtype, model, device
        self._shapes: dict[str, torch.Size] = {}
        self.alike, first = {}, dict[int, str]()
        for name, tensor in (model.state_dict(keep_vars=True) if model is not None else {}).items():
            if tensor.is_floating_point():
                self.alike.setdefault(first.setdefault(id(tensor), name), []).append(name)
                self._shapes[name] = tensor.shape
        for name, info in (stored.infos if model is None else {}).items():
            if info.dtype.is_floating_point:
                self.alike[name], self._shapes[name] = [name], torch.Size(info.shape)
        self.place: dict[str, str | Group] = {}  # model name -> key, or the group that holds it
        for names in self.alike.values():
            there = next((n for n in names if n in keys.plain or n in keys.groups), None)
            if there is not None:
                self.place |= dict.fromkeys(names, keys.plain.get(there) or keys.groups[there])

    def __getitem__(self, name: str) -> torch.Tensor:
        place = self.place.get(name)
        if place is None:
            return super().__getitem__(name)
        if isinstance(place, str):
            return self._stored.read(place).to(self._device, self._dtype)
        assert self._model is not None  # groups are found with a model
        made = converted(place, self._model, self._stored.read)
        own = next((n for n in self._same(name) if n in made), None)
        if own is None or made[own].shape != self._shapes[name]:
            msg = f"checkpoint {self._stored.checkpoint.name}: {name!r} cannot be put together from {place.keys[0][1]!r} and others; config.json and weights do not belong together"
            raise CheckpointError(msg)
        return made[own].to(self._device, self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def shape(self, name: str) -> torch.Size:
        """Its shape in the model."""
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:  # noqa: ARG002  # one for all
        """The type in which it is given."""
        return self._dtype

    def stored(self, name: str) -> torch.dtype:
        """The type in its file."""
        place = self.place.get(name)
        if place is None:
            return super().stored(name)
        return self._stored.infos[place if isinstance(place, str) else place.keys[0][1]].dtype

    def blocks(self, name: str, size: int) -> Iterator[torch.Tensor]:
        """Its values in order, flat, ``size`` at a time, in the type of the file."""
        place = self.place.get(name)
        if isinstance(place, str):
            return self._stored.blocks(place, size)
        return super().blocks(name, size)

    def _same(self, name: str) -> list[str]:
        return next(names for names in self.alike.values() if name in names)


def settle(model: nn.Module, stored: Stored, *, joined: bool = False) -> Keys:
    """Where the tensors of ``model`` lie, after checks against the files' headers.

    What nobody trains (counters, statistics, tables of places) is read into the model, which needs its values to be
    traced, and a head that the config ties although the files hold another is given back its own place. ``joined`` allows what a head adds to its base to be
    missing or left over. Raises CheckpointError.
    """
    keys = _resolved(model, stored)
    state = model.state_dict(keep_vars=True)
    for name in _own_heads(model, stored, keys):
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(torch.empty_like(state[name])))
    require_keys(model, stored.checkpoint, stored.infos, keys, joined=joined)
    with torch.no_grad():
        for name, tensor in state.items():
            if not tensor.requires_grad and name in keys.plain:
                tensor.copy_(stored.read(keys.plain[name]))
    return keys


def _resolved(model: nn.Module, stored: Stored) -> Keys:
    """Names as ``resolve`` finds them; of a folder of several modules the transformer's by themselves, the others as they are."""
    if not stored.checkpoint.in_sentence:
        return resolve(model, stored.infos)
    front, held = f"{TRANSFORMER}.", model.state_dict()
    own = {key.removeprefix(front): key for key in stored.infos if key.startswith(front)}
    found, keys = resolve(model.get_submodule(TRANSFORMER), own), Keys()
    keys.plain = {f"{front}{name}": own[key] for name, key in found.plain.items()}
    keys.plain |= {key: key for key in stored.infos if not key.startswith(front)}
    keys.unexpected = [own[key] for key in found.unexpected]
    keys.missing = [name for name in held if name not in keys.plain]
    return keys


def _own_heads(model: nn.Module, stored: Stored, keys: Keys) -> list[str]:
    """Names that the model ties to another whose values in the files differ."""
    groups: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in keys.plain:
            groups.setdefault(id(tensor), []).append(name)
    return [name for names in groups.values() for name in names[1:] if not _equal(stored, keys, names[0], name)]


def _equal(stored: Stored, keys: Keys, one: str, other: str) -> bool:
    pair = [keys.plain[name] for name in (one, other)]
    if len({(stored.infos[key].shape, stored.infos[key].dtype) for key in pair}) > 1:
        return False
    return all(torch.equal(a, b) for a, b in zip(*map(stored.blocks, pair), strict=True))
