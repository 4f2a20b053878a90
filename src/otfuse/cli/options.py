"""Options that several commands share, each told once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Messages and warnings of the libraries too.")]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Read weights from pickle files (weights only, no code).")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that a checkpoint brings along.")]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:1, mps.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Examples per forward pass.")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="An .npz or .safetensors file of named arrays, a saved datasets folder, an image folder, or a text file.",
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder to write; it must not exist, or be empty.")]
Probe = Annotated[
    str | None,
    typer.Option(
        "--probe", metavar="DATA", help="Unlabelled inputs for recipes that look at them; those of --data by default."
    ),
]
