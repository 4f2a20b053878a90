"""Small programs in processes of their own, forked from one that has imported everything: importing would be most of their time."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import socket
import sys
from multiprocessing import forkserver
from pathlib import Path
from typing import IO, TYPE_CHECKING

from otfuse import cli

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerProcess

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["imported"])
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}


def started(program: Callable[..., None], *given: object) -> tuple[ForkServerProcess, IO[str]]:
    """``program(*given)`` in a process that says nothing on stdout, and what it writes on stderr."""
    theirs = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # for the server, whose path this is not
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH") if theirs is None else os.environ.update(PYTHONPATH=theirs)
    ours, end = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_within, args=(end, program, given))
    process.start()
    end.close()
    said = os.fdopen(os.dup(ours.fileno()), encoding="utf-8")
    ours.close()
    return process, said


def statuses(program: Callable[..., None], *given: object, processes: int = 1) -> list[int | None]:
    """Exit statuses of ``program(*given)`` in so many processes, which know of each other by what a launcher sets."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    place |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    ranks = [{"RANK": str(i), "LOCAL_RANK": str(i), **place} if processes > 1 else {} for i in range(processes)]
    running = [started(placed, rank, program, *given) for rank in ranks]
    found = []
    for process, said in running:
        with said:
            told = said.read()
        process.join()
        found.append(process.exitcode)
        sys.stderr.write(told)  # pytest shows it where the test fails
    return found


def placed(environment: dict[str, str], program: Callable[..., None], *given: object) -> None:
    """``program(*given)`` with these variables in the environment."""
    os.environ.update(environment)
    program(*given)


def command(*arguments: str) -> None:
    """The command."""
    cli.main(list(arguments))


def ended(places: list[tuple[str, str]], at: int, number: int, *arguments: str) -> None:
    """The command, which sends itself a signal when something is done at these places (module[:class], name) for the ``at``-th time.

    Before it is done where ``at`` is odd, after it where it is even. At the end it tells how often they were come by.
    """
    seen = [0]
    for place, name in places:
        module, _, cls = place.partition(":")
        owner = importlib.import_module(module)
        owner = getattr(owner, cls) if cls else owner
        setattr(owner, name, _counted(getattr(owner, name), seen, at, number))
    try:
        cli.main(list(arguments))
    finally:
        sys.stderr.write(f"count {seen[0]}\n")


def _counted(do: Callable[..., object], seen: list[int], at: int, number: int) -> Callable[..., object]:
    def call(*given: object, **named: object) -> object:
        seen[0] += 1
        now = seen[0]
        if now == at and now % 2:
            os.kill(os.getpid(), number)
        made = do(*given, **named)
        if now == at and not now % 2:
            os.kill(os.getpid(), number)
        return made

    return call


def _within(end: Connection, program: Callable[..., None], given: tuple[object, ...]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the tests in the background
    os.environ.update(ENVIRONMENT)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(end.fileno(), 2)
    end.close()
    program(*given)
