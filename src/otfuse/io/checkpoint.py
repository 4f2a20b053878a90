"""Opening and loading Hugging Face checkpoints: headers first, weights only when they are wanted."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from otfuse.errors import CheckpointError, DeviceError
from otfuse.io.adapters import refuse_adapter
from otfuse.io.companions import require_whole
from otfuse.io.headers import TensorInfo, read_json, read_weights, unpickle
from otfuse.io.quiet import quiet
from otfuse.io.sentence import base_class, is_sentence_folder, require_layers, sentence_model, transformer_folder
from otfuse.io.switches import loading

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from otfuse.io.keys import Keys

_HUB_NAME = re.compile(r"(?:[\w][\w.-]*/)?[\w][\w.-]*(?:@[\w./-]+)?")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers were read and found whole. ``name`` is what the user called it.

    ``folder`` holds config.json, weights and tokenizer; ``root`` is the folder that was given, where sentence-transformers
    may have put them into a sub-folder.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    pickled: bool = False
    trust_remote_code: bool = False
    root: Path | None = None

    @cached_property
    def in_sentence(self) -> bool:
        """Whether the model is one of several modules of sentence-transformers."""
        return self.root is not None and is_sentence_folder(self.root)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the weight files."""
        return tuple(sorted({info.file for info in self.tensors.values()}))

    @property
    def architecture(self) -> str | None:
        """The class named in config.json, or None."""
        named = self.config.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else None


def open_checkpoint(path: str | Path, *, allow_pickle: bool = False, trust_remote_code: bool = False) -> Checkpoint:
    """A checked checkpoint from a folder, or from ``org/model[@revision]`` in the local Hugging Face cache.

    Reads config.json and the headers of the weight files; no weight is loaded and no code of the checkpoint runs.
    Raises :class:`CheckpointError`.
    """
    folder = _folder(str(path))
    if not _listed(path, folder):
        msg = f"checkpoint {path}: the folder is empty; give a folder with config.json and model.safetensors"
        raise CheckpointError(msg)
    root, folder = folder, transformer_folder(folder)
    refuse_adapter(path, folder)
    if not (folder / "config.json").is_file():
        msg = f"checkpoint {path}: no config.json in the folder; give a folder saved by save_pretrained"
        raise CheckpointError(msg)
    config = read_json(folder / "config.json")
    _check_config(path, config, trust_remote_code=trust_remote_code)
    require_whole(root)
    require_layers(root, allow_pickle=allow_pickle)
    tensors, pickled = read_weights(folder, allow_pickle=allow_pickle)
    return Checkpoint(str(path), folder, config, tensors, pickled, trust_remote_code, root)


def _listed(path: str | Path, folder: Path) -> list[Path]:
    try:
        found = list(folder.iterdir())
        (folder / "config.json").is_file()  # a folder that may be listed may still not be entered
    except OSError as error:
        msg = f"checkpoint {path}: the folder cannot be read ({error.strerror}); check its permissions"
        raise CheckpointError(msg) from None
    return found


def _folder(path: str) -> Path:
    if Path(path).is_dir():
        return Path(path)
    if Path(path).exists():
        msg = f"checkpoint {path}: this is a file; give the folder that holds config.json and the weights"
        raise CheckpointError(msg)
    if not _HUB_NAME.fullmatch(path):
        msg = f"checkpoint {path}: no such folder; check the path"
        raise CheckpointError(msg)
    from huggingface_hub import snapshot_download

    name, _, revision = path.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    except Exception:  # noqa: BLE001 - the hub's client has a dozen ways to say that a name is not in the cache
        msg = (
            f"checkpoint {path}: no such folder, and not in the local Hugging Face cache either; check the path, or "
            "download the model first"
        )
        raise CheckpointError(msg) from None


def _check_config(path: str | Path, config: Any, *, trust_remote_code: bool) -> None:
    if not isinstance(config, dict):
        msg = f"checkpoint {path}: config.json must hold a JSON object, not a {type(config).__name__}"
    elif config.get("quantization_config"):
        msg = f"checkpoint {path}: the weights are quantised and cannot be averaged; give the checkpoint before quantisation"
    elif config.get("auto_map") and not trust_remote_code:
        msg = (
            f"checkpoint {path}: config.json asks to run code that comes with the checkpoint (auto_map); read that code, "
            "then pass --trust-remote-code if you trust it"
        )
    else:
        return
    raise CheckpointError(msg)


def load_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Stored names and tensors one by one, file by file: safetensors are never more than one tensor in memory."""
    for file in checkpoint.files:
        path = checkpoint.folder / file
        if checkpoint.pickled:
            yield from unpickle(path).items()
            continue
        with safe_open(path, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                yield name, handle.get_tensor(name)


def load_model(
    checkpoint: Checkpoint, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> nn.Module:
    """The model in eval mode on ``device``, in the checkpoint's own type unless ``dtype`` is given.

    The class is the one named in config.json, else what the Auto classes choose. Raises :class:`CheckpointError` if
    tensors are missing, of another shape, left over from the same modules, or not finite; :class:`DeviceError`.
    """
    model, info = _from_pretrained(checkpoint, model_class(checkpoint), dtype)
    _refuse_bad_keys(checkpoint, model, info)
    if checkpoint.root is not None and checkpoint.in_sentence:
        model = sentence_model(checkpoint.root, model)
    _refuse_not_finite(checkpoint, model)
    try:
        model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:  # some devices lack float64
        msg = f"device {device}: the model of {checkpoint.name} cannot go there ({first_line(error)}); use --device cpu"
        raise DeviceError(msg) from None
    return model.eval()


def first_line(error: BaseException) -> str:
    """What an error says first; a line that ends in a colon says nothing without the next."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    told = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    return told.rstrip(".;")


def model_class(checkpoint: Checkpoint) -> Any:
    """The class named in config.json, else what the Auto classes choose. CheckpointError if transformers has none such."""
    import transformers

    name, custom = checkpoint.architecture, checkpoint.config.get("auto_map") or {}
    if not custom and checkpoint.in_sentence:
        name = base_class(checkpoint.config, name)
    for auto, target in custom.items() if isinstance(custom, dict) else ():
        # Reached only with trust_remote_code: the Auto class that the checkpoint's code registers for its architecture.
        if auto.startswith("AutoModel") and (name is None or str(target).endswith(f".{name}")):
            return getattr(transformers, auto)
    if name is None:
        return transformers.AutoModel
    known = getattr(transformers, name, None) if name.isidentifier() else None
    if isinstance(known, type) and hasattr(known, "from_pretrained") and issubclass(known, torch.nn.Module):
        return known
    msg = (
        f"checkpoint {checkpoint.name}: config.json names the class {name!r}, which transformers {transformers.__version__} "
        "does not have; upgrade transformers, or load the model yourself and pass it as a module"
    )
    raise CheckpointError(msg)


def _from_pretrained(checkpoint: Checkpoint, kind: Any, dtype: torch.dtype | None) -> tuple[nn.Module, dict[str, Any]]:
    code = {"trust_remote_code": True} if checkpoint.trust_remote_code else {}
    try:
        with quiet():
            model, info = kind.from_pretrained(
                checkpoint.folder,
                dtype="auto" if dtype is None else dtype,
                local_files_only=True,
                use_safetensors=not checkpoint.pickled,
                weights_only=True,
                ignore_mismatched_sizes=True,  # reported in `info` and refused below, in one sentence
                output_loading_info=True,
                **loading(kind, checkpoint.config, checkpoint.folder, checkpoint.tensors),
                **code,
            )
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a config or file makes transformers raise
        msg = f"checkpoint {checkpoint.name}: {kind.__name__} cannot be loaded ({first_line(error)}); check its config.json"
        raise CheckpointError(msg) from None
    return model, info


def require_keys(
    model: nn.Module, checkpoint: Checkpoint, infos: Mapping[str, TensorInfo], keys: Keys, *, joined: bool
) -> None:
    """CheckpointError unless the files hold every tensor of ``model`` in its shape, and nothing that says otherwise."""
    state = model.state_dict(keep_vars=True)
    held = {id(state[name]) for name in (*keys.plain, *keys.groups)}
    optional = [re.compile(p) for p in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    idle = [re.compile(p) for p in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    missing = [n for n in keys.missing if id(state[n]) not in held and not any(p.search(n) for p in optional)]
    shapes = {name: (infos[key].shape, tuple(state[name].shape)) for name, key in keys.plain.items()}
    info = {
        "mismatched_keys": [(name, stored, wanted) for name, (stored, wanted) in shapes.items() if stored != wanted],
        "missing_keys": [] if joined else missing,
        "unexpected_keys": [] if joined else [k for k in keys.unexpected if not any(p.search(k) for p in idle)],
    }
    _refuse_bad_keys(checkpoint, model, info)


def _refuse_bad_keys(checkpoint: Checkpoint, model: nn.Module, info: dict[str, Any]) -> None:
    said = f"checkpoint {checkpoint.name}: {type(model).__name__}"
    wrong = "config.json and weights do not belong together"
    if checkpoint.architecture is None:
        wrong = "config.json names no class: add it under 'architectures'"
    if mismatched := sorted(info["mismatched_keys"]):
        name, stored, wanted = mismatched[0]
        msg = f"{said} wants {name!r} with shape {list(wanted)}, the file has {list(stored)}; {wrong}"
        raise CheckpointError(msg)
    if missing := sorted(info["missing_keys"]):
        msg = f"{said} needs {len(missing)} tensors that the files lack, first {missing[0]!r}; {wrong}"
        raise CheckpointError(msg)
    unexpected = sorted(info["unexpected_keys"])
    if left := [name for name in unexpected if _matters(name, model)]:
        msg = f"{said} leaves {len(left)} tensors of the files unused, first {left[0]!r}; {wrong}"
        raise CheckpointError(msg)
    if unexpected:
        log.warning("%s leaves %d tensors of the files unused, first %r", said, len(unexpected), unexpected[0])


def _matters(name: str, model: nn.Module) -> bool:
    """Whether a stored tensor that the model leaves unused says that the config is wrong.

    So it is when the model has the same tensor in another block (fewer blocks than stored), or has its module with that
    parameter switched off (a bias). A head for another task, or a buffer that is no longer stored, is left aside.
    """
    owner, _, leaf = name.rpartition(".")
    switched_off = any(
        part == owner and getattr(module, leaf, module) is None for part, module in model.named_modules()
    )
    pattern = re.sub(r"\d+", "#", name)
    return switched_off or any(re.sub(r"\d+", "#", other) == pattern for other in model.state_dict())


def finite(tensor: torch.Tensor) -> bool:
    """Whether every value is finite; makes no temporary copy of the usual types."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.dtype.itemsize == 1:  # 8-bit floats have no reductions
        tensor = tensor.float()
    if torch.isfinite(tensor.detach().sum()):  # the faster of the two; it may overflow, but hides nothing
        return True
    low, high = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _refuse_not_finite(checkpoint: Checkpoint, model: nn.Module) -> None:
    bad = next((name for name, tensor in model.state_dict().items() if not finite(tensor)), None)
    if bad is None:
        return
    for name, tensor in load_tensors(checkpoint):  # again from the files, whose names may differ from the model's
        if not finite(tensor):
            file = checkpoint.tensors[name].file
            msg = f"checkpoint {checkpoint.name}: tensor {name!r} in {file} has values that are not finite; give a sound checkpoint"
            raise CheckpointError(msg)
    msg = f"checkpoint {checkpoint.name}: tensor {bad!r} overflows in the type asked for; choose a wider --dtype"
    raise CheckpointError(msg)
