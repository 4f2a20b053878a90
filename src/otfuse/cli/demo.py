"""`otfuse demo`: two pairs of small models trained on handwritten digits, fused, and compared with controls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from otfuse.cli import options, output
from otfuse.cli.problems import InterruptedRunError


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where parents, results and the figure go.")] = Path(
        "demo"
    ),
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Train two pairs of small vision transformers on handwritten digits, fuse each with every recipe, compare with controls."""
    with output.reporting(quiet=quiet, verbose=verbose) as progress:
        from otfuse.demo.run import run

        try:
            results = run(folder, progress)
        except KeyboardInterrupt:
            raise InterruptedRunError(
                f"interrupted; give the same command again to go on with what {folder} holds"
            ) from None
    if as_json:
        output.emit(results)
    else:
        typer.echo(results["table"])
