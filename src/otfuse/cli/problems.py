"""Every problem as one sentence and an exit status."""

from __future__ import annotations

import errno

import typer

from otfuse.cli.output import say
from otfuse.errors import OtfuseError

INTERRUPTED = "interrupted; nothing unfinished was left behind"
GOES_ON = "interrupted; give the same command again to go on from the last saved state"
_IN_PYTHON = (
    "; example_inputs are an argument of the Python functions, on the command line only 'otfuse fuse' takes inputs, by "
    "--data, and its --recipe vanilla needs no trace"
)
_MEMORY = "out of memory; give a smaller --batch-size, or a machine with more memory"


class InterruptedRunError(OtfuseError):
    """An interruption after which something is kept, told by the message."""

    status = 130


def told(error: BaseException, *, interrupted: bool) -> int:
    """Say in one sentence what ended the command; its exit status.

    A library that is ``interrupted`` while it loads may turn that into an error of its own; ours are told as they are.
    """
    if isinstance(error, OtfuseError):
        say(f"otfuse: {sentence(error)}")
    elif interrupted or isinstance(error, KeyboardInterrupt):
        say(f"otfuse: {INTERRUPTED}")
        return 130
    else:
        say(f"otfuse: {sentence(error)}", by_all=True)  # of several processes, each may have a bug of its own
    return status(error)


def status(error: BaseException) -> int:
    """The exit status: the error's own, 2 for usage, 1 for everything else."""
    if isinstance(error, OtfuseError):
        return error.status
    return 2 if isinstance(error, typer.TyperException) else 1


def sentence(error: BaseException) -> str:
    """What is wrong, where, and what to do, on one line."""
    return " ".join(_text(error).split())


def _text(error: BaseException) -> str:
    if isinstance(error, OtfuseError):
        return f"{error}{_IN_PYTHON}" if "example_inputs" in str(error) else str(error)
    if isinstance(error, typer.TyperException):
        return _usage(error)
    if _is_memory(error):
        return _MEMORY
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return (
            f"no space left on the device{_place(error)}; nothing was written, free some space or choose another --out"
        )
    if isinstance(error, OSError) and error.errno == errno.EDQUOT:
        return f"the disk quota is used up{_place(error)}; nothing was written, free some space or choose another --out"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"the name is too long for a file or folder{_place(error)}; choose a shorter one"
    if isinstance(error, PermissionError):
        return f"permission denied{_place(error)}; choose a place that you may read and write"
    return (
        f"unexpected {type(error).__name__}: {str(error)[:300] or 'no message'}; this is a bug of otfuse, "
        "please report it with what OTFUSE_DEBUG=1 prints for the same command"
    )


def _usage(error: typer.TyperException) -> str:
    message = getattr(error, "format_message", lambda: str(error))()
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "otfuse"
    return f"{message.rstrip('.')}; see '{command} --help'"


def _is_memory(error: BaseException) -> bool:
    """Whether memory ran out: of Python, of the processor's allocator, or of a device (torch is not imported to ask)."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text)


def _place(error: OSError) -> str:
    return f" at {error.filename}" if error.filename else ""
