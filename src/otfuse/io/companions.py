"""What belongs to a model beside its weights and config, copied as it is: tokenizer, processor, generation settings."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otfuse.io.headers import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator

_COPIED = (".json", ".txt", ".model", ".spm", ".tiktoken", ".vocab", ".bpe", ".jinja")
_LICENCE = re.compile(r"(?:LICEN[CS]E|NOTICE|USE_POLICY)", re.IGNORECASE)
_NOT_COPIED = re.compile(
    r"config\.json|.*\.index\.json|fusion\.json|adapter_.*|trainer_state\.json|demo\.json|training_args.*|.*_results\.json"
)
_IMPORTED = re.compile(r"^\s*(?:from\s+\.(\w+)\s+import\b|import\s+\.(\w+)\s*$)", re.MULTILINE)

NOT_TRUSTED = (
    "is code that comes with the checkpoint (auto_map); read that code, then pass --trust-remote-code if you trust it"
)


@dataclass(frozen=True, slots=True)
class Own:
    """Where a model's own tokenizer or processor lies (None: nowhere), and whether code there may run."""

    folder: Path | None
    trusted: bool = False


def copy_companions(source: Path, folder: Path) -> None:
    """Copy what is neither weights, config nor a record of how the anchor was made.

    Of code, only the files that a copied one names (``auto_map``) and what those import from beside them; none is run.
    The code of the model itself is written with the model.
    """
    if (templates := source / "additional_chat_templates").is_dir():
        shutil.copytree(templates, folder / templates.name)
    for path in _companions(source):
        shutil.copyfile(path, folder / path.name)
        for code in _code(source, path):
            shutil.copyfile(source / code, folder / code)


def require_whole(folder: Path) -> None:
    """CheckpointError if settings beside the weights are damaged: they would be copied as they are."""
    for path in _companions(folder):
        if path.suffix == ".json":
            read_json(path)


def _companions(folder: Path) -> list[Path]:
    found = [p for p in sorted(folder.iterdir()) if p.suffix in _COPIED or _LICENCE.match(p.name)]
    return [p for p in found if p.is_file() and not _NOT_COPIED.fullmatch(p.name)]


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
    if path.suffix != ".json":
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
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
