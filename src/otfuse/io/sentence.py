"""Folders of sentence-transformers: a transformer, the pooling of its tokens, and layers of their own in sub-folders.

``modules.json`` lists them in order. What is traced is all of it, so that the map of the stream reaches the columns of the
first dense layer; the last layer's rows are outputs. Stored names are those of each file: ``transformer.`` stands before
the names of the transformer's files, ``2_Dense.`` before those of ``2_Dense/model.safetensors``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from otfuse.errors import CheckpointError
from otfuse.io.headers import read_json, read_weights, unpickle
from otfuse.io.pooling import LAYERS, activation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from otfuse.io.headers import TensorInfo

_LIST = "modules.json"
_HEAD = re.compile(r"For[A-Z]|LMHead")
TRANSFORMER = "transformer"


@dataclass(frozen=True, slots=True)
class Listed:
    """A module that the list names: its class's last name (None: not of the package) and its folder inside the checkpoint's."""

    kind: str | None
    path: str
    told: str
    weights: bool


def listed(folder: Path) -> list[Listed]:
    """The modules of the folder in their order, none without a list; CheckpointError if the list is damaged."""
    if not (folder / _LIST).is_file():
        return []
    entries = read_json(folder / _LIST)
    found = []
    for entry in entries if isinstance(entries, list) else [None]:
        path, told = (entry.get("path", ""), entry.get("type")) if isinstance(entry, dict) else (None, None)
        if (
            not isinstance(path, str)
            or not isinstance(told, str)
            or ".." in PurePosixPath(path).parts
            or path.startswith("/")
        ):
            msg = f"checkpoint {folder}: {_LIST} is no list of modules with a 'type' and a 'path' inside the folder; download it again"
            raise CheckpointError(msg)
        own = told.startswith("sentence_transformers.")
        held = any((folder / path / name).is_file() for name in ("model.safetensors", "pytorch_model.bin"))
        found.append(Listed(told.rpartition(".")[2] if own else None, path, told, held))
    return found


def transformer_folder(folder: Path) -> Path:
    """Where the transformer's config, weights and tokenizer lie: the folder itself, or the sub-folder that the list names."""
    first = next(iter(listed(folder)), None)
    return folder / first.path if first is not None and first.kind == "Transformer" else folder


def is_sentence_folder(folder: Path) -> bool:
    """Whether there is more to fuse than a transformer in the folder itself; CheckpointError if otfuse does not know it.

    Modules without weights (pooling, normalisation) are companions where nothing stands behind them.
    """
    modules = listed(folder)
    if not (
        any(m.weights for m in modules[1:]) or (modules and modules[0].path and not (folder / "config.json").is_file())
    ):
        return False
    for at, module in enumerate(modules):
        if module.kind not in (LAYERS if at else ("Transformer",)):
            msg = (
                f"checkpoint {folder}: {_LIST} names {module.told}, which otfuse cannot follow; to fuse the transformer alone, "
                f"give a copy of the folder without {_LIST}"
            )
            raise CheckpointError(msg)
    return True


def sentence_files(folder: Path) -> dict[str, str]:
    """Prefix of stored names -> file, relative to the folder; of shards the index.

    ``{"transformer.": "model.safetensors", "2_Dense.": "2_Dense/model.safetensors"}``
    """
    modules = listed(folder)
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    found = {}
    for at, module in enumerate(modules):
        file = next((name for name in names if (folder / module.path / name).is_file()), None)
        if file is not None:
            found[f"{_name(module) if at else TRANSFORMER}."] = str(PurePosixPath(module.path) / file)
    return found


def require_layers(folder: Path, *, allow_pickle: bool) -> None:
    """CheckpointError unless the layers beside the transformer can be read: settings, and headers of the weights."""
    if is_sentence_folder(folder):
        for module in listed(folder)[1:]:
            layer = _layer(folder, module)
            if stored := layer.state_dict():
                shapes = {
                    n: info.shape
                    for n, info in read_weights(folder / module.path, allow_pickle=allow_pickle)[0].items()
                }
                if shapes != {name: tuple(tensor.shape) for name, tensor in stored.items()}:
                    msg = f"checkpoint {folder}: config.json and weights in {module.path} do not belong together"
                    raise CheckpointError(msg)


def sentence_tensors(
    folder: Path, transformer: Mapping[str, TensorInfo], *, allow_pickle: bool
) -> dict[str, TensorInfo]:
    """All stored tensors of the folder by the names that the model has, their files relative to the folder."""
    modules = listed(folder)
    found = {
        f"{TRANSFORMER}.{key}": replace(info, file=str(PurePosixPath(modules[0].path) / info.file))
        for key, info in transformer.items()
    }
    for module in (m for m in modules[1:] if m.weights):
        for key, info in read_weights(folder / module.path, allow_pickle=allow_pickle)[0].items():
            found[f"{_name(module)}.{key}"] = replace(info, file=str(PurePosixPath(module.path) / info.file))
    return found


def base_class(config: Mapping[str, Any], named: str | None) -> str | None:
    """The class to load as transformer: the one named, unless that is one with a head, which the package never loads."""
    if named is not None and not _HEAD.search(named):
        return named
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    base = MODEL_MAPPING_NAMES.get(str(config.get("model_type")))
    return base if isinstance(base, str) else named


class SentenceModel(nn.Module):
    """A transformer and the layers behind it.

    ``forward`` gives ``sentence_embedding`` ``[example, unit]``, and beside it the transformer's own ``pooler_output`` where it
    has one: no embedding is made of it, but its weights read the stream too.
    """

    base_model_prefix = TRANSFORMER

    def __init__(
        self,
        transformer: nn.Module,
        layers: Mapping[str, nn.Module],
        places: Mapping[str, str],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """``layers`` by name in their order; ``places``: sub-folders by the same names, and that of the transformer.

        ``settings`` of the layers by name, as :func:`layer_settings` has them.
        """
        super().__init__()
        self.add_module(TRANSFORMER, transformer)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._layers, self._places = tuple(layers), dict(places)
        self.layer_settings = dict(settings or {})

    @property
    def config(self) -> Any:
        """The transformer's."""
        return self.get_submodule(TRANSFORMER).config

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Embeddings of token ids ``[example, token]``; a mask of ones where none is given."""
        given = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inner = {name: value for name, value in given.items() if value is not None}
        state = self.get_submodule(TRANSFORMER)(input_ids=input_ids, return_dict=True, **inner)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        features = {"token_embeddings": state["last_hidden_state"], "attention_mask": mask}
        for name in self._layers:
            layer: Callable[..., dict[str, torch.Tensor]] = self.get_submodule(name)
            features = layer(features)
        result = {
            "sentence_embedding": features["sentence_embedding"]
            if "sentence_embedding" in features
            else features["token_embeddings"]
        }
        pooled = state.get("pooler_output")
        return result if pooled is None else result | {"pooler_output": pooled}

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Every module into its own sub-folder, as the package reads them; settings of layers are companions."""
        from safetensors.torch import save_file

        inner: Any = self.get_submodule(TRANSFORMER)
        inner.save_pretrained(Path(folder) / self._places[TRANSFORMER], **options)
        for name in self._layers:
            place = Path(folder) / self._places[name]
            if state := {key: tensor.contiguous() for key, tensor in self.get_submodule(name).state_dict().items()}:
                place.mkdir(parents=True, exist_ok=True)
                save_file(state, place / "model.safetensors", metadata={"format": "pt"})


def sentence_model(folder: Path, transformer: nn.Module) -> SentenceModel:
    """The transformer with the layers that the folder's list names, their weights loaded in the transformer's type."""
    modules = listed(folder)
    dtype = next((p.dtype for p in transformer.parameters() if p.is_floating_point()), torch.float32)
    layers: dict[str, nn.Module] = {}
    for module in modules[1:]:
        layer = _layer(folder, module)
        if layer.state_dict():
            layer.load_state_dict(_stored(folder / module.path), assign=True)
        layers[_name(module)] = layer.to(dtype)
    places = {_name(m): m.path for m in modules[1:]} | {TRANSFORMER: modules[0].path}
    return SentenceModel(transformer, layers, places, layer_settings(folder)).eval()


def layer_settings(folder: Path) -> dict[str, Any]:
    """The settings of all layers by their names, none where the folder is no such one."""
    modules = listed(folder)[1:] if is_sentence_folder(folder) else []
    return {_name(module): _settings(folder, module) | {"type": str(module.kind)} for module in modules}


def _stored(place: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    path = place / "model.safetensors"
    return load_file(path) if path.is_file() else unpickle(place / "pytorch_model.bin")


def _name(module: Listed) -> str:
    return module.path.replace("/", "_").replace(".", "_") or str(module.kind)


def _layer(folder: Path, module: Listed) -> nn.Module:
    try:
        with torch.device("meta"):  # nothing is drawn: the values are those of the file
            return LAYERS[str(module.kind)](**_plain(_settings(folder, module)))
    except (TypeError, ValueError, KeyError) as error:
        msg = f"checkpoint {folder}: {module.path}/config.json does not describe a {module.kind} layer ({error}); download it again"
        raise CheckpointError(msg) from None


def _settings(folder: Path, module: Listed) -> dict[str, Any]:
    path = folder / module.path / "config.json"
    found = read_json(path) if module.path and path.is_file() else {}
    if not isinstance(found, dict):
        msg = f"a {type(found).__name__} instead of settings by name"
        raise TypeError(msg)
    return found


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as arguments."""
    function = settings.get("activation_function")
    return settings if function is None else settings | {"activation_function": activation(str(function))}
