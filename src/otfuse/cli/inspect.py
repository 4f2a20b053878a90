"""`otfuse inspect`: the spaces of a model, proved exact, as a table, a picture or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otfuse.cli import options, output
from otfuse.errors import OutputError, UsageError

if TYPE_CHECKING:
    from otfuse.core.graph import FlowGraph


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint folder.")],
    verify: Annotated[bool, typer.Option("--verify", help="Prove in float64 that the spaces are exact.")] = False,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Draw blocks, residual lines, junctions, spaces.")
    ] = None,
    as_json: options.Json = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the random elements of --verify.")] = 0,
    allow_pickle: options.Pickle = False,
    trust_remote_code: options.Trust = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Derive the flow graph of a model: its spaces of interchangeable units, and what each tolerates."""
    if seed >= 2**63:  # what a torch generator takes
        raise UsageError(f"--seed {seed}: give a number below 2^63")
    with output.reporting(quiet=quiet, verbose=verbose) as progress:
        from otfuse.commands.inspect import inspect

        found = inspect(
            model,
            verify=verify,
            seed=seed,
            progress=progress,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )
    if svg is not None:
        _draw(found.graph, svg)
    if as_json:
        output.emit(as_object(found.graph, found.verification), wrote=svg)
        return
    from otfuse.report import table

    output.show(*table.inspected(found.graph, found.verification), wrote=svg)
    if svg is not None:
        output.say(f"otfuse: drew {svg}")


def as_object(graph: FlowGraph, verification: Any) -> dict[str, Any]:
    """The form of ``inspect --json``: ``{"parameters", "spaces", "verify"}``.

    A space's ``group`` is what its stored tensors tolerate as they are, ``exact`` the largest group of the canonical form.
    """
    spaces = [
        {
            "id": s.id,
            "name": s.name,
            "kind": s.kind,
            "size": s.size,
            "copies": s.copies,
            "group": str(s.group),
            "pinned": s.pinned,
            "members": [{"tensor": m.tensor, "axis": m.axis, "role": str(m.role)} for m in s.members],
            "exact": s.exact,
        }
        for s in graph.spaces
    ]
    verify = (
        None if verification is None else {"error": float(verification.error), "control": float(verification.control)}
    )
    return {"parameters": graph.parameters, "spaces": spaces, "verify": verify}


def _draw(graph: FlowGraph, file: Path) -> None:
    from otfuse.report.svg import draw

    try:
        file.write_text(draw(graph), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--svg {file}: cannot be written ({error.strerror}); choose another file") from None
