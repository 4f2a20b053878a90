"""What a run of the demo finds of an earlier one: which files are its own, and whether its results still hold."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import otfuse
from otfuse.errors import OutputError
from otfuse.train.options import FinetuneOptions

if TYPE_CHECKING:
    from collections.abc import Iterable

MARK = "demo.json"  # beside a parent's weights: how it was trained
DIGITS = "digits"  # in it, where a parent knows some digits only: which
RESULTS, OTHERS = "results.json", ("results.md", "figure.png")


def require_own(folder: Path, parents: Iterable[str]) -> None:
    """Refuse, before anything is made or replaced, a folder in which the demo would replace what it did not make."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"demo {folder}: this is a file; give another folder")
    for name in parents:
        place = folder / name
        if place.exists() and not (place.is_dir() and (_is_parent(place) or not any(place.iterdir()))):
            raise _foreign(folder, name)
    found = [name for name in (RESULTS, *OTHERS) if (folder / name).exists()]
    if found and read_results(folder) is None:
        raise _foreign(folder, found[0])


def _foreign(folder: Path, name: str) -> OutputError:
    return OutputError(
        f"demo {folder}: {name} there was not made by the demo, which would replace it; give another folder, or move it away"
    )


def _is_parent(place: Path) -> bool:
    try:
        made_by = json.loads((place / MARK).read_text(encoding="utf-8"))
        FinetuneOptions(**{key: value for key, value in made_by.items() if key != DIGITS})
    except Exception:  # noqa: BLE001 - whatever is there instead, it is no record of this demo
        return False
    return True


def read_results(folder: Path) -> dict[str, Any] | None:
    """The results of an earlier run in ``folder``; None if there are none, or the file is another's."""
    try:
        found = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        return found if found["command"].startswith("otfuse demo ") and found["rows"] and found["table"] else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def fingerprint(*parts: Any) -> str:
    """SHA-256 (hex) over this package's own code and recipes and the plain values given."""
    digest, root = hashlib.sha256(), Path(otfuse.__file__).parent
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".yaml")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    digest.update(json.dumps(parts, sort_keys=True).encode())
    return digest.hexdigest()
