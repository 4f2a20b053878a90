"""What belongs to a model beside its weights and config, copied as it is: tokenizer, processor, generation settings.

It is found by exclusion: whatever is no weights, no trace of a training and no cache goes along, sub-folders included.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otfuse.errors import CheckpointError
from otfuse.io.headers import read_json
from otfuse.io.vocabulary import vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator

# Weights of any library, and what a training keeps in their formats: optimiser, scheduler, scaler, random state.
_WEIGHTS = (
    r"safetensors|bin|pt\d?|pth|ckpt|pkl|pickle|h5|hdf5|keras|msgpack|gguf|ggml|ggjt|onnx|onnx_data\w*|tflite|pb|ot|data"
    r"|mlmodel|mlpackage|mlmodelc|pdparams|pdmodel|pdiparams|engine|plan|llamafile|nemo|distcp"
)
_FILES = re.compile(
    rf".*\.(?:{_WEIGHTS})(?:[.-]\d.*|\.(?:index|meta|data).*)?|(?:model|weights|params).*\.np[yz]|openvino_.*\.xml"
    r"|adapter_.*|optimi[sz]er.*|rng_state.*|random_states?_.*|scaler\..*|trainer_state\.json|training_args.*|.*_results\.json"
    r"|trainer_log\.jsonl|events\.out\.tfevents.*|zero_to_fp32\.py|.*\.(?:log|lock|incomplete|tmp|swp|pyc)|\.DS_Store",
    re.IGNORECASE,
)
_AT_THE_TOP = re.compile(
    r"config\.json|readme\.md|fusion\.json|demo\.json|latest", re.IGNORECASE
)  # the result has its own
_FOLDERS = re.compile(
    r"\.git|\.cache|\.ipynb_checkpoints|\.venv|__pycache__|onnx|openvino|coreml|tflite|gguf|mlx|wandb|mlruns|tensorboard|runs|logs"
    r"|.*\.(?:mlpackage|mlmodelc|partial|replaced)|(?:tmp-)?checkpoints?(?:[-_]?\d+)?|global_step\d+|epoch[-_]?\d+|step[-_]?\d+"
    r"|(?:optimizer|pytorch_model_fsdp|sharded_state|distributed_checkpoint)[-_]?\d*",
    re.IGNORECASE,
)
_OBJECTS = ("generation_config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
_IMPORTED = re.compile(r"^\s*(?:from\s+\.(\w+)\s+import\b|import\s+\.(\w+)\s*$)", re.MULTILINE)
_POINTER = b"version https://git-lfs.github.com/spec/"

NOT_TRUSTED = (
    "is code that comes with the checkpoint (auto_map); read that code, then pass --trust-remote-code if you trust it"
)


@dataclass(frozen=True, slots=True)
class Own:
    """Where a model's own tokenizer or processor lies (None: nowhere), and whether code there may run."""

    folder: Path | None
    trusted: bool = False


def copy_companions(source: Path, folder: Path) -> None:
    """Copy what is neither weights, config nor a record of how the anchor was made; links to files give the files.

    Of code, only the files that the config or a copied file names (``auto_map``) and what those import from beside them;
    none is run. ``folder`` may lie inside ``source``: it is not copied into itself.
    """
    found = list(companions(source, apart=folder))  # all of them, before the first is written
    for path in found:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if (source / path).is_dir():
            target.mkdir(exist_ok=True)
        else:
            shutil.copyfile(source / path, target)
    for path in (Path("config.json"), *found):
        for code in _code(source, source / path):
            shutil.copyfile(source / code, folder / code)


def companions(source: Path, *, apart: Path | None = None) -> Iterator[Path]:
    """Paths inside ``source``, in order, of the files that go along, and of folders that hold nothing.

    Left out: weights, caches, what a training wrote, adapters, code, and the folder ``apart``. Links to folders are not
    followed: they may lead back.
    """
    todo = [source]
    while todo:
        place = todo.pop()
        listed, top = _listed(source, place), place == source
        if not top and any(path.name == "adapter_config.json" for path in listed):
            continue
        if not top and not listed:
            yield place.relative_to(source)
        for path in listed:
            if path.is_dir() and not path.is_symlink():
                if not (_FOLDERS.fullmatch(path.name) or (apart is not None and path.resolve() == apart.resolve())):
                    todo.append(path)
            elif path.is_file() and not _left_out(path, top=top):
                yield path.relative_to(source)


def _listed(source: Path, place: Path) -> list[Path]:
    try:
        return sorted(place.iterdir())
    except OSError as error:
        msg = f"checkpoint {source}: its folder {place.name} cannot be read ({error.strerror}); check its permissions"
        raise CheckpointError(msg) from None


def _left_out(path: Path, *, top: bool) -> bool:
    own = top and _AT_THE_TOP.fullmatch(path.name)
    return bool(own or path.suffix == ".py" or _FILES.fullmatch(path.name))


def require_whole(folder: Path) -> None:
    """CheckpointError if a file beside the weights is damaged: it would be copied as it is.

    Settings are read; of any other file, and of every link, it is asked whether the file itself is there.
    """
    for path in _listed(folder, folder):
        if path.is_symlink() and not path.exists() and not _left_out(path, top=False):
            msg = f"checkpoint {folder}: {path.name} is a link to a file that is not there; download it again"
            raise CheckpointError(msg)
    for path in companions(folder):
        if (folder / path).is_file():
            _require_file(folder, path)
    vocabulary(folder)


def _require_file(folder: Path, path: Path) -> None:
    try:
        with (folder / path).open("rb") as file:
            pointer = file.read(len(_POINTER)) == _POINTER
    except OSError as error:
        msg = f"checkpoint {folder}: {path} cannot be read ({error.strerror}); check its permissions"
        raise CheckpointError(msg) from None
    if pointer:
        msg = f"checkpoint {folder}: {path} is a pointer of Git LFS and not the file itself; run `git lfs pull` there"
        raise CheckpointError(msg)
    if path.suffix == ".json" and len(path.parts) == 1 and path.name != "tokenizer.json":  # read as a vocabulary
        found = read_json(folder / path)
        if path.name in _OBJECTS and not isinstance(found, dict):
            msg = (
                f"checkpoint {folder}: {path} must hold a JSON object, not a {type(found).__name__}; download it again"
            )
            raise CheckpointError(msg)


def names_code(path: Path) -> bool:
    """Whether the settings in that file ask for code that comes with the checkpoint."""
    return bool(_mapped(path))


def _code(source: Path, path: Path) -> list[str]:
    """Names of the code files that the settings in ``path`` need, found by reading alone."""
    found: list[str] = []
    todo = [str(reference).split(".", maxsplit=1)[0] for reference in _leaves(_mapped(path))]
    while todo:
        name = f"{todo.pop()}.py"
        if name.removesuffix(".py").isidentifier() and name not in found and (source / name).is_file():
            found.append(name)
            text = (source / name).read_text(encoding="utf-8", errors="replace")
            todo += [one or other for one, other in _IMPORTED.findall(text)]
    return found


def _mapped(path: Path) -> Any:
    """The value of ``auto_map`` in a file of settings, None where there is none."""
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        settings = json.loads(text) if '"auto_map"' in text else None  # a vocabulary of megabytes has none
    except (OSError, ValueError):
        return None
    return settings.get("auto_map") if isinstance(settings, dict) else None


def _leaves(value: Any) -> Iterator[Any]:
    """The references in an ``auto_map``: ``file.Class``, in lists or by name."""
    if isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield value
