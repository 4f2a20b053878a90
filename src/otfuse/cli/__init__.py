"""The command `otfuse`: one file per command; each parses, calls one function of the pipeline, and prints.

Nothing heavy is imported here or at the top of a command's file: `otfuse --help` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from otfuse.cli import demo, evaluate, finetune, fuse, inspect, recipes
from otfuse.cli.output import say
from otfuse.cli.problems import INTERRUPTED, sentence, status
from otfuse.errors import OtfuseError

if TYPE_CHECKING:
    from types import FrameType

# The libraries below make millions of lasting objects as they load. Python's default of a collection after every 700 new
# ones goes through all of them again and again, which takes longer than fusing a small model (docs/decisions.md).
_OBJECTS_PER_COLLECTION = 200_000

app = typer.Typer(
    name="otfuse",
    help="Fuse trained transformers into one, after aligning their units with optimal transport.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("fuse")(fuse.command)
app.command("inspect")(inspect.command)
app.command("eval")(evaluate.command)
app.command("finetune")(finetune.command)
app.command("recipes")(recipes.command)
app.command("demo")(demo.command)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"otfuse {version('otfuse')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fuse trained transformers into one, after aligning their units with optimal transport."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process with its status: 0, 1 (a problem, one sentence), 2 (usage), 130."""
    given = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, _terminated)
    gc.set_threshold(_OBJECTS_PER_COLLECTION)
    atexit.register(gc.freeze)  # nor is a process that ends searched for what could be thrown away
    try:
        code = app(given or ["--help"], prog_name="otfuse", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read us has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:  # the one place where every problem becomes a sentence
        if os.environ.get("OTFUSE_DEBUG"):
            raise
        if not isinstance(error, OtfuseError):  # of several processes, each may have a bug of its own
            typer.echo(f"otfuse: {sentence(error)}", err=True)
        else:
            say(f"otfuse: {sentence(error)}")
        sys.exit(status(error))
    if code == 130:
        say(f"otfuse: {INTERRUPTED}")
    sys.exit(code if isinstance(code, int) else 0)


def _terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    """A polite kill is an interruption: whoever holds a temporary folder removes it on the way out."""
    raise KeyboardInterrupt
