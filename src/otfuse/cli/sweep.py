"""`otfuse sweep`: a grid over keys of a recipe, every point fused and evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from otfuse.cli import options, output
from otfuse.cli.problems import InterruptedRunError
from otfuse.errors import RecipeError


def command(
    anchor: Annotated[str, typer.Argument(metavar="ANCHOR", help="Checkpoint folder whose basis the results have.")],
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Checkpoints to fuse with it.")],
    data: options.Data,
    grid: Annotated[
        list[str],
        typer.Option(
            "--grid", metavar="KEY=V1,V2,..", help="Values of a key of the recipe, or of 'recipe'; may be repeated."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; a sweep that was cut off there goes on.")],
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="NAME|FILE", help="What the grid is laid over.")
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
    """Fuse and evaluate every combination of the grid; one that was cut off goes on when the same command is given again."""
    with output.reporting(quiet=quiet, verbose=verbose) as progress:
        from otfuse.commands.sweep import sweep_checkpoints

        try:
            found = sweep_checkpoints(
                anchor,
                sources,
                data,
                grid,
                out,
                recipe=recipe,
                probe=probe,
                batch_size=batch_size,
                device=device,
                allow_pickle=allow_pickle,
                trust_remote_code=trust_remote_code,
                progress=progress,
            )
        except KeyboardInterrupt:
            raise InterruptedRunError(
                f"interrupted; give the same command again to go on with what {out} holds"
            ) from None
    if as_json:
        output.emit(found, wrote=out)
    else:
        from otfuse.report import table

        output.show(*table.swept(found), wrote=out)
        output.say(f"otfuse: wrote {out}")
    refused = [row["refused"] for row in found["rows"] if "refused" in row]
    if len(refused) == len(found["rows"]):
        raise RecipeError(f"no point of the grid could be fused, the first because: {refused[0]}")
