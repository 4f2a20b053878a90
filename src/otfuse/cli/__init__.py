"""The command `otfuse`: its commands stand in commands.py; here a process begins, ends, and says what went wrong."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from types import FrameType

# The libraries below make millions of lasting objects as they load. Python's default of a collection after every 700 new
# ones goes through all of them again and again, which takes longer than fusing a small model (docs/decisions.md).
_OBJECTS_PER_COLLECTION = 1_000_000


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process with its status: 0, 1 (a problem, one sentence), 2 (usage), 130."""
    _reopen()
    given = sys.argv[1:] if arguments is None else arguments
    signals: list[int] = []

    def interrupted(number: int, _frame: FrameType | None) -> NoReturn:
        """A polite kill is an interruption too: whoever holds a temporary folder removes it on the way out."""
        signals.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # else a shell has put this in the background
        signal.signal(signal.SIGINT, interrupted)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # beside other work, threads that spin take it from each other
    gc.set_threshold(_OBJECTS_PER_COLLECTION)
    atexit.register(gc.freeze)  # nor is a process that ends searched for what could be thrown away
    try:
        from otfuse.cli.commands import app  # typer loads here: an interruption of that is one like any other

        code = app(given or ["--help"], prog_name="otfuse", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read us has had enough
        _discard()
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:  # the one place where every problem becomes a sentence
        if os.environ.get("OTFUSE_DEBUG") and not isinstance(error, KeyboardInterrupt):
            raise
        from otfuse.cli.problems import told

        status = told(error, interrupted=bool(signals))
        _discard()
        sys.exit(status)
    if code == 130:
        from otfuse.cli.problems import told

        told(KeyboardInterrupt(), interrupted=True)
    sys.exit(code if isinstance(code, int) else 0)


def _reopen() -> None:
    """Streams that were closed by whoever started the process discard what they are given."""
    for name in ("stdin", "stdout", "stderr"):  # in the order of their numbers, which the system gives out again
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - open to the end of the process


def _discard() -> None:
    """Drop what could not be printed, or the end of the process tries again and gives it a status of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
