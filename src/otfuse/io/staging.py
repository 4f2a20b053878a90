"""A hidden folder beside the target that becomes the target in one rename, and the removal of abandoned ones."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if sys.platform != "win32":  # there, abandoned folders stay until a person removes them
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NEW, _OLD = "partial", "replaced"


@contextmanager
def staged(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A fresh folder to fill; on leaving it becomes ``target``, and on any exception, Ctrl-C or SIGTERM it vanishes.

    A folder at ``target`` that is not empty is an OSError unless ``replace``. A process killed outright leaves a hidden
    folder ``.NAME.RANDOM.partial``, which :func:`sweep` removes: the kernel gave up the dead process's lock on it.
    """
    parent = target.absolute().parent
    made = [place for place in (parent, *parent.parents) if not place.exists()]  # innermost first
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with _terminable(), _locked(target, _NEW) as folder:
            yield folder
            _flush(folder)
            _swap(folder, target, replace=replace)
    except BaseException:
        for place in made:
            with contextlib.suppress(OSError):  # not made yet, or somebody else has put something there
                place.rmdir()
        raise


def sweep(target: Path) -> None:
    """Remove what killed processes left beside ``target``; put back a folder they had moved aside to replace."""
    for path in sorted(nearest(target).glob(f".{_escape(target.name)}.????????????????.*")):
        if path.suffix not in (f".{_NEW}", f".{_OLD}"):
            continue
        handle = _lock(path)
        if handle is None:
            continue
        try:
            if path.suffix == f".{_OLD}" and not target.exists():
                path.rename(target)
            else:
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(handle)


def nearest(target: Path) -> Path:
    """The innermost place above ``target`` that exists."""
    return next(place for place in target.absolute().parents if place.exists())


def try_writing(target: Path) -> None:
    """Make and remove a folder where ``target`` would go: OSError if that cannot be done, or ``target`` not be replaced."""
    if target.name == "..":
        raise OSError(errno.EINVAL, "a path that ends in .. names no folder of its own")
    if target.exists():  # an empty folder, which a rename replaces; a shell that stands in it would be left nowhere
        if target.samefile(os.curdir):
            raise OSError(errno.EBUSY, "this is the folder you are in, which cannot be replaced")
        if target.is_mount():
            raise OSError(errno.EBUSY, "a disk is mounted there, and what is written has to replace the folder")
    trial = nearest(target) / hidden(target, _NEW)
    try:
        trial.mkdir()
    finally:  # also when interrupted just then
        with contextlib.suppress(OSError):
            trial.rmdir()


def hidden(target: Path, kind: str) -> str:
    """A fresh name that :func:`sweep` knows as one of ``target``'s."""
    return f".{target.name}.{secrets.token_hex(8)}.{kind}"


def _escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _lock(folder: Path) -> int | None:
    """An open handle that holds the folder's lock until it is closed or its process ends; None if another has it."""
    if sys.platform == "win32":
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks: then nothing is ever taken for abandoned
        os.close(handle)
        return None
    return handle


@contextmanager
def _locked(target: Path, kind: str) -> Iterator[Path]:
    """A fresh hidden folder with its lock; it vanishes on any exception, from the moment it is made."""
    handle, folder = None, target
    try:
        while True:
            folder = target.absolute().with_name(hidden(target, kind))
            folder.mkdir()
            handle = _lock(folder)
            if folder.exists():  # else a sweep of another process came between the two lines above
                break
        yield folder
    except BaseException:
        if folder != target:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        if handle is not None:
            os.close(handle)


def _swap(folder: Path, target: Path, *, replace: bool) -> None:
    if not (replace and target.is_dir()):
        folder.rename(target)  # replaces an empty folder too, in one step
        return
    old = target.absolute().with_name(hidden(target, _OLD))
    handle = _lock(target)  # the lock follows the folder: no sweep puts it back in between
    try:
        target.rename(old)
        try:
            folder.rename(target)
        except BaseException:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        if handle is not None:
            os.close(handle)


def _flush(folder: Path) -> None:
    """Everything on the disk before the rename, so that a power failure cannot leave a whole name on half a file."""
    if sys.platform == "win32":  # folders cannot be flushed there
        return
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C inside, where it would otherwise end the process at once."""

    def unwind(number: int, frame: Any) -> None:  # noqa: ARG001 - the signature of a handler
        raise SystemExit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
