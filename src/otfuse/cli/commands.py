"""All commands of `otfuse`, one file each; each parses, calls one function (of the pipeline, or behind ``otfuse.commands``), and prints.

Nothing heavy is imported here or at the top of a command's file: `otfuse --help` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from otfuse.cli import barrier, demo, evaluate, finetune, fuse, inspect, recipes, report, sweep

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
app.command("barrier")(barrier.command)
app.command("sweep")(sweep.command)
app.command("report")(report.command)
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
