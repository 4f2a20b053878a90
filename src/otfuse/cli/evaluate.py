"""`otfuse eval`: loss and accuracy, or perplexity, of models and of their ensemble."""

from __future__ import annotations

from typing import Annotated

import typer

from otfuse.cli import options, output


def command(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="Checkpoint folders.")],
    data: options.Data,
    ensemble: Annotated[bool, typer.Option("--ensemble", help="Also the average of the models' predictions.")] = False,
    as_json: options.Json = False,
    batch_size: options.BatchSize = 32,
    device: options.Device = "cpu",
    allow_pickle: options.Pickle = False,
    trust_remote_code: options.Trust = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Evaluate models on labelled data: loss with accuracy, perplexity for language models, squared error of regression."""
    with output.reporting(quiet=quiet, verbose=verbose) as progress:
        from otfuse.commands.evaluate import evaluate_checkpoints

        rows = evaluate_checkpoints(
            models,
            data,
            ensemble=ensemble,
            batch_size=batch_size,
            device=device,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    if as_json:
        output.emit({"models": rows})
        return
    from otfuse.report import table

    output.show(*table.evaluated(rows))
