"""`otfuse fuse`: align, average, write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otfuse.cli import options, output
from otfuse.cli.problems import GOES_ON, InterruptedRunError
from otfuse.errors import UsageError

if TYPE_CHECKING:
    from otfuse.core.recipe import Recipe

DEFAULT_RECIPE = "auto"


def command(
    anchor: Annotated[
        str, typer.Argument(metavar="ANCHOR", help="Checkpoint folder whose architecture and names the result has.")
    ],
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Checkpoints to carry into the anchor's basis.")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; it must not exist, or be empty.")] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME|FILE", help="See 'otfuse recipes'.")
    ] = DEFAULT_RECIPE,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe; may be repeated."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Unlabelled inputs, for recipes that compare activations or learn from them."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="TIME", help="Time for recipe auto, such as 60s or 5m; 60s by default."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=0, help="Steps of training, instead of --budget: then no clock decides anything."),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, whatever a killed run left beside --out.")
    ] = False,
    device: options.Device = "cpu",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be solved and written; write nothing.")
    ] = False,
    as_json: options.Json = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Skip the proof that the flow graph is exact.")
    ] = False,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Type of the result; the anchor's own by default.")
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option("--out-shard-size", metavar="SIZE", help="Such as 5GB or 200MiB.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="The recipe's seed.")] = None,
    batch_size: options.BatchSize = 32,
    allow_pickle: options.Pickle = False,
    trust_remote_code: options.Trust = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Fuse checkpoints: align the units of every SOURCE with those of ANCHOR, then average."""
    if out is None and not dry_run:
        raise UsageError("--out is missing: say where to write the result, or ask for a --dry-run")
    checked = _recipe(recipe, settings or [], seed, budget, steps)
    with output.reporting(quiet=quiet, verbose=verbose) as progress:
        from otfuse import pipeline
        from otfuse.io.writer import check_shard_size

        check_shard_size(shard_size)
        try:
            result = pipeline.fuse_checkpoints(
                anchor,
                sources,
                None if dry_run else out,
                recipe=checked,
                data=data,
                device=device,
                verify=not no_verify,
                dtype=dtype,
                shard_size=shard_size,
                allow_pickle=allow_pickle,
                trust_remote_code=trust_remote_code,
                batch_size=batch_size,
                restart=restart,
                progress=progress,
            )
        except KeyboardInterrupt:
            if out is not None and pipeline.resumable(out):
                raise InterruptedRunError(GOES_ON) from None
            raise
    if result.report is None:  # a dry run
        _print_plan(result, as_json=as_json)
    elif as_json:
        output.emit({"out": result.out} | result.report.to_dict(), wrote=result.out)
    else:
        from otfuse.report import table

        output.show(*table.fused(result.report.to_dict()), wrote=result.out)
        output.say(f"otfuse: wrote {result.out}")


def _recipe(name: str, settings: list[str], seed: int | None, budget: str | None, steps: int | None) -> Recipe:
    from otfuse.core.recipe import SECTIONS, parse_options, read

    chosen = parse_options(settings)
    plain = read(name, chosen if seed is None else chosen | {"seed": seed})
    for key, value in (("budget", budget), ("steps", steps)):
        if value is None:
            continue
        section = SECTIONS.get(plain.scheme)
        if section is None or key not in section.model_fields:
            raise UsageError(
                f"--{key} goes with a recipe that trains for it, and {name} does not; use --recipe auto, or leave it out"
            )
        chosen[f"{plain.scheme}.{key}"] = value
    return read(name, chosen if seed is None else chosen | {"seed": seed})


def _print_plan(result: Any, *, as_json: bool) -> None:
    plan = result.plan
    if as_json:
        problems = [dict(zip(("name", "anchor", "source", "method"), p, strict=True)) for p in plan.problems]
        spaces = [
            {"id": i, "name": result.names.get(i, i), "kind": kind, "anchor": anchor, "source": source}
            for i, kind, anchor, source in plan.spaces
        ]
        stages = [dict(zip(("name", "what"), stage, strict=True)) for stage in plan.stages]
        cost = {"stages": stages, "memory_mib": plan.memory_mib, "seconds": plan.seconds}
        output.emit({"out": None, "spaces": spaces, "problems": problems, **cost})
        return
    from otfuse.report import table

    named = [(result.names.get(i, i), *rest) for i, *rest in plan.spaces]
    output.show(*table.plan(named, plan.problems, plan.memory_mib, plan.seconds, plan.stages))
    output.say("otfuse: a dry run, nothing was written")
