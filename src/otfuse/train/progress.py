"""The working folder of a training run: what it needs to go on after it was killed at any moment."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from otfuse.core.dataset import Dataset
from otfuse.errors import DivergedError, OutputError, TrainError
from otfuse.train.options import FinetuneOptions

FREE = {"save_every", "device"}  # options that may change between a run and its continuation


class _Noting:
    """A file for torch to write to; the system's errors are noted on their way."""

    def __init__(self, file: BinaryIO, failed: list[OSError]) -> None:
        self._file, self._failed = file, failed

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self._failed.append(error)
            raise

    def flush(self) -> None:
        self._file.flush()


@dataclass(frozen=True, slots=True)
class Progress:
    """``folder`` beside the result, ``.NAME.progress``: one file for every ``stage`` that learns, only ever replaced whole."""

    folder: Path
    stage: str = "state"

    @classmethod
    def beside(cls, out: Path) -> Progress:
        """The working folder of a run whose result goes to ``out``."""
        return cls(out.absolute().parent / f".{out.name}.progress")

    def of(self, stage: str) -> Progress:
        """That of another stage of the same run."""
        return replace(self, stage=stage)

    @property
    def _file(self) -> Path:
        return self.folder / f"{self.stage}.pt"

    @property
    def _part(self) -> Path:
        return self.folder / f"{self.stage}.part"

    @property
    def saved(self) -> bool:
        """Whether there is a state to go on from."""
        return self._file.exists()

    @property
    def begun(self) -> bool:
        """Whether any stage of the run has one."""
        return any(self.folder.glob("*.pt"))

    def open(self) -> None:
        """Makes the folder; OutputError if that cannot be, before hours are spent on what could not be kept."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._part.touch()
        except OSError as error:
            raise self._refusal(error) from None

    def save(self, run: dict[str, Any], state: dict[str, Any]) -> None:
        """Writes ``state`` of that ``run`` so that a kill leaves the old file or the new one; OutputError if it cannot."""
        failed: list[OSError] = []
        try:
            with self._part.open("wb") as file:
                noting: Any = _Noting(file, failed)  # all of a file that torch asks for
                torch.save({"run": json.dumps(run, sort_keys=True), **state}, noting)
                file.flush()
                os.fsync(file.fileno())
            self._part.replace(self._file)
        except (OSError, RuntimeError) as error:  # torch hides the system's error behind one of its own
            raise self._refusal(failed[0] if failed else error) from None

    def _refusal(self, error: Exception) -> OutputError:
        with suppress(OSError):
            self._part.unlink()  # half a file, on a disk that may be full
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return OutputError(
                f"progress cannot be written to {self.folder}: the disk is full ({reason}); free space there and give "
                "the same command again, or choose another --out"
            )
        return OutputError(
            f"progress cannot be written to {self.folder}: {reason}; free space there or choose another place"
        )

    def load(self, run: dict[str, Any]) -> dict[str, Any] | None:
        """The last state written, or None. TrainError if it cannot be read or belongs to a run that differs."""
        if not self._file.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self._file, map_location="cpu", weights_only=True)
            old = json.loads(state.pop("run"))
        except Exception:  # noqa: BLE001  whatever a damaged file makes the reader raise, the way out is the same
            raise TrainError(
                f"progress in {self.folder} cannot be read; delete the folder or pass --restart to begin anew"
            ) from None
        differs = [key for key in run if run[key] != old.get(key)]
        if differs:
            raise TrainError(
                f"{self.folder} holds the progress of another run ({', '.join(differs)} differ); "
                "delete the folder or pass --restart to begin anew"
            )
        return state

    def remove(self) -> None:
        """Deletes the folder, if it is there."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_if_unused(self) -> None:
        """Deletes the folder if nothing was saved in it."""
        if not self._file.exists():
            with suppress(OSError):
                self._part.unlink(missing_ok=True)
                self.folder.rmdir()


def fingerprint(model: nn.Module, data: Dataset, options: FinetuneOptions, tokens: Any) -> dict[str, Any]:
    """All that decides the result of a run, by name: hashes of weights and data, each option, the special tokens."""
    weights = hash_of_weights((name, tensor.detach()) for name, tensor in sorted(model.state_dict().items()))
    chosen = {key: value for key, value in options.model_dump().items() if key not in FREE}
    return {"weights": weights, "data": data.digest(), "tokens": tokens, **chosen}


def hash_of_weights(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Of names, types, shapes and values, in the order given."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        found.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


@contextmanager
def tidy(progress: Progress | None) -> Iterator[None]:
    """Leaves a working folder behind a failure or an interruption only if there is something to go on from."""
    try:
        yield
    except BaseException as error:
        if progress is not None:
            progress.remove() if isinstance(error, DivergedError) else progress.remove_if_unused()
        raise
