"""Results of a long run, one line of JSON each, kept as they are made: a run that was killed goes on after the last whole line."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from otfuse.errors import OutputError
from otfuse.io.card import finite
from otfuse.io.writer import one_sentence

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_KEYS = {"run", "recipe", "result"}


class Ledger:
    """``{"run", "recipe", "result"}`` per line; ``run`` is what all lines share: hashes of models and data."""

    def __init__(self, file: Path) -> None:
        self._file, self._run = file, dict[str, Any]()
        self._lines: list[dict[str, Any]] = []

    @property
    def exists(self) -> bool:
        """Whether a run has begun there."""
        return self._file.is_file()

    def open(self, run: Mapping[str, Any]) -> None:
        """Reads what is there, and drops the half of a line that a kill left; OutputError if another run made it."""
        self._run, folder = dict(run), self._file.parent
        with one_sentence(folder):
            folder.mkdir(parents=True, exist_ok=True)
            raw = self._file.read_bytes() if self.exists else b""
            whole = raw[: raw.rfind(b"\n") + 1]
            self._lines = [self._read(line) for line in whole.splitlines()]
            with self._file.open("ab") as file:
                file.truncate(len(whole))

    def find(self, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
        """A copy of the result of that recipe, or None."""
        return next((dict(line["result"]) for line in self._lines if line["recipe"] == recipe), None)

    def add(self, recipe: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
        """Keeps a result, on the disk when this returns; a copy of it. OutputError if it cannot be written."""
        line = finite({"run": self._run, "recipe": dict(recipe), "result": dict(result)})
        text = json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"output {self._file}: cannot be written on ({error.strerror}), what it holds is kept; mend that and give "
                "the same command again"
            ) from None
        self._lines.append(line)
        return dict(line["result"])

    def _read(self, raw: bytes) -> dict[str, Any]:
        where = f"output {self._file.parent}: {self._file.name} there"
        try:
            line = json.loads(raw)
        except ValueError:
            line = None
        if not isinstance(line, dict) or set(line) != _KEYS or not all(isinstance(v, dict) for v in line.values()):
            raise OutputError(
                f"{where} was not made by this command, or is damaged; choose another --out, or remove it"
            )
        if line["run"] != self._run:
            differ = ", ".join(key for key in self._run if line["run"].get(key) != self._run[key])
            raise OutputError(f"{where} is of another run ({differ} differ); choose another --out, or remove it")
        return line
