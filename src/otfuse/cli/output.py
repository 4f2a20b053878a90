"""What a command says: results on stdout, progress and messages on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from otfuse.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rich.console import RenderableType


_PATIENCE = 5.0  # seconds of a stage before more is told of it, and between one line and the next


def is_main() -> bool:
    """Whether this process speaks: of several that `accelerate launch` started, only the first does."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str, *, by_all: bool = False) -> None:
    """One message on stderr, of this process if it is the first, or if all speak; where it cannot be put, it is dropped."""
    if by_all or is_main():
        with suppress(OSError):
            typer.echo(text, err=True)


def put(text: str) -> None:
    """That text on stdout."""
    with _printing(None):
        typer.echo(text, nl=False)


def show(*tables: RenderableType, wrote: Path | None = None) -> None:
    """Tables on stdout, as wide as the terminal (or the variable COLUMNS), or 100 columns where there is none."""
    if not is_main():
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100, highlight=False)
    with _printing(wrote):
        for table in tables:
            console.print(table)


def emit(value: Mapping[str, Any], *, wrote: Path | None = None) -> None:
    """One JSON object on stdout, and nothing else."""
    if is_main():
        with _printing(wrote):
            typer.echo(json.dumps(plain(value), ensure_ascii=False, allow_nan=False))


@contextmanager
def _printing(wrote: Path | None) -> Iterator[None]:
    """What is printed inside; where it cannot be, OutputError, which says that ``wrote`` is there all the same."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        what = f"{wrote} was written whole, but the report on it" if wrote is not None else "the result"
        raise OutputError(f"{what} could not be printed ({error.strerror}); send stdout to another place") from None


def plain(value: Any) -> Any:
    """``value`` as JSON holds it: records as objects, arrays as lists, numbers that are not finite as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def reporting(*, quiet: bool, verbose: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A function ``progress(stage, done, total)``: a bar on a terminal, a plain line per stage elsewhere, silent if quiet."""
    _configure(verbose=verbose)
    if quiet or not is_main():
        yield lambda _stage, _done, _total: None
    elif sys.stderr.isatty():
        with _bars() as progress:
            yield progress
    else:
        yield _lines()


def _configure(*, verbose: bool) -> None:
    """Libraries keep quiet unless asked; must run before they are imported."""
    import logging
    import warnings

    if verbose:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
        return
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def _lines() -> Callable[[str, int, int], None]:
    """A line per stage; of one that takes longer than some seconds also how much is done, and what is left at that rate."""
    told: dict[str, float] = {}
    first: dict[str, tuple[float, int]] = {}  # when something was done first, and how much: preparing is no rate

    def progress(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage not in told:
            told[stage] = now
            say(f"otfuse: {stage}")
        at, before = first.get(stage, (now, done + 1))
        if done <= before:  # the first, or begun again
            first.pop(stage, None)
            if done:
                first[stage] = now, done
        elif done < total and now - told[stage] >= _PATIENCE:
            told[stage] = now
            say(f"otfuse: {stage}: {done} of {total} done, {left(now - at, done - before, total - done)} left")

    return progress


def left(seconds: float, done: int, rest: int) -> str:
    """About how long the rest will take, if what is ``done`` took so many ``seconds``."""
    wanted = seconds / done * rest
    return f"about {wanted:.0f} s" if wanted < 100 else f"about {wanted / 60:.0f} min"


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield progress
