"""`otfuse barrier`: loss and accuracy along the line between an anchor and a carried source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from otfuse.cli import options, output


def command(
    anchor: Annotated[str, typer.Argument(metavar="ANCHOR", help="Checkpoint folder at the beginning of the line.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Checkpoint that is carried to its end.")],
    data: options.Data,
    recipes: Annotated[
        list[str] | None,
        typer.Option("--recipe", metavar="NAME|FILE", help="How to carry the source; may be repeated."),
    ] = None,
    points: Annotated[int, typer.Option("--points", min=3, help="Points on the line, both ends included.")] = 11,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for results.json and figure.svg; it must not exist, or be empty."),
    ] = None,
    probe: options.Probe = None,
    as_json: options.Json = False,
    batch_size: options.BatchSize = 32,
    device: options.Device = "cpu",
    allow_pickle: options.Pickle = False,
    trust_remote_code: options.Trust = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Evaluate along the straight line from ANCHOR to the carried SOURCE; the line of the plain average stands beside it."""
    with output.reporting(quiet=quiet, verbose=verbose) as progress:
        from otfuse.commands.barrier import barrier_of_checkpoints

        found = barrier_of_checkpoints(
            anchor,
            source,
            data,
            recipes or (),
            points=points,
            out=out,
            probe=probe,
            batch_size=batch_size,
            device=device,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    if as_json:
        output.emit(found, wrote=out)
        return
    from otfuse.report import table

    output.show(*table.barrier(found), wrote=out)
    if out is not None:
        output.say(f"otfuse: wrote {out}")
