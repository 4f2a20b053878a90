"""`otfuse report`: what a folder that otfuse wrote tells of itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from otfuse.commands.study import RESULTS
from otfuse.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

_FUSED = "fusion.json"


def read_report(folder: Path) -> tuple[str, dict[str, Any]]:
    """Which command wrote the folder (``fuse``, ``barrier``, ``sweep`` or ``demo``) and its figures; DataError if none did."""
    for name in (_FUSED, RESULTS):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataError(f"report {folder}: {name} cannot be read ({error.strerror}); check the path") from None
        except ValueError:
            raise DataError(
                f"report {folder}: {name} is damaged; write it again with the command that made it"
            ) from None
        return _kind(folder, name, found), found
    raise DataError(
        f"report {folder}: no {_FUSED} and no {RESULTS}; give a folder that fuse, barrier, sweep or demo has finished"
    )


def _kind(folder: Path, name: str, found: Any) -> str:
    keys = set(found) if isinstance(found, dict) else set()
    if name == _FUSED and {"stages", "solved", "gate", "notes"} <= keys:
        return "fuse"
    word = str(found["command"]) if "command" in keys else ""
    kind = "demo" if word.startswith("otfuse demo") else word
    wanted = {
        "barrier": {"lines", "parents", "notes"},
        "sweep": {"rows", "grid", "parents", "notes"},
        "demo": {"table"},
    }
    if name == RESULTS and kind in wanted and wanted[kind] <= keys:
        return kind
    raise DataError(
        f"report {folder}: {name} there was not made by otfuse; give a folder that fuse, barrier, sweep or demo made"
    )
