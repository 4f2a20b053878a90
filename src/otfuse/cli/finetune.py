"""`otfuse finetune`: train a model further on labelled data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from otfuse.cli import options, output
from otfuse.cli.problems import GOES_ON, InterruptedRunError


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint folder.")],
    data: options.Data,
    out: Annotated[Path, typer.Option("--out", help="Folder to write; a run that was cut off there goes on.")],
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over the data; 3 by default.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps, instead of --epochs.")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Examples per step, over all processes; 32 by default.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="Peak of the cosine; 5e-5 by default.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option("--weight-decay", help="Of AdamW; 0.01 by default.")] = None,
    warmup: Annotated[
        float | None,
        typer.Option("--warmup", help="Share of the steps that warm up, from 0 to below 1; 0.1 by default."),
    ] = None,
    label_smoothing: Annotated[
        float | None,
        typer.Option("--label-smoothing", help="Share given to all classes, from 0 to below 1; 0 by default."),
    ] = None,
    max_grad_norm: Annotated[
        float | None, typer.Option("--max-grad-norm", help="Longest gradient, longer ones are cut; 1 by default.")
    ] = None,
    mixed_precision: Annotated[
        str | None, typer.Option("--mixed-precision", help="no, bf16 or fp16; no by default.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu or cuda; what accelerate finds by default.")
    ] = None,
    save_every: Annotated[
        int | None, typer.Option("--save-every", min=1, help="Steps between saved states; 100 by default.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of the order of the examples and of dropout; 0 by default.")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, whatever state --out holds.")] = False,
    as_json: options.Json = False,
    allow_pickle: options.Pickle = False,
    trust_remote_code: options.Trust = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Finetune a model: AdamW, cosine with warm-up. A run that was cut off goes on when the same command is given again.

    On several devices: accelerate launch --multi_gpu --num_processes N -m otfuse.cli finetune MODEL ...; the batch
    size is that of all processes together. On a machine without devices the same starts N processes on its processor.
    """
    given = {
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "label_smoothing": label_smoothing,
        "max_grad_norm": max_grad_norm,
        "mixed_precision": mixed_precision,
        "device": device,
        "save_every": save_every,
        "seed": seed,
    }
    chosen = {key: value for key, value in given.items() if value is not None}
    with output.reporting(quiet=quiet, verbose=verbose) as progress:
        from otfuse.commands.finetune import finetune_checkpoint

        try:
            result = finetune_checkpoint(
                model,
                data,
                out,
                chosen,
                progress=progress,
                restart=restart,
                allow_pickle=allow_pickle,
                trust_remote_code=trust_remote_code,
            )
        except KeyboardInterrupt:
            raise InterruptedRunError(GOES_ON) from None
    if as_json:
        output.emit(result, wrote=out)
        return
    from otfuse.report import table

    output.show(table.figures(result), wrote=out)
    output.say(f"otfuse: wrote {out}")
