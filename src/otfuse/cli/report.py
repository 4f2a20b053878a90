"""`otfuse report`: the tables of a folder that fuse, barrier, sweep or demo wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from otfuse.cli import options, output


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What fuse, barrier, sweep or demo wrote.")],
    as_json: options.Json = False,
) -> None:
    """Show again what a folder that otfuse wrote tells of itself."""
    from otfuse.commands.report import read_report

    kind, found = read_report(folder)
    if as_json:
        output.emit(found)
        return
    from otfuse.report import table

    if kind == "demo":
        output.put(found["table"])
        return
    output.show(*{"fuse": table.fused, "barrier": table.barrier, "sweep": table.swept}[kind](found))
