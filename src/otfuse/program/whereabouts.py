"""Where in the user's code an operator was called."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

import otfuse.program

_BELOW: Final = tuple(str(Path(package).parent) for package in (torch.__file__, otfuse.program.__file__))
_INSTALLED: Final = ("/site-packages/", "/dist-packages/")


def where(node: object) -> str:
    """File and line of the innermost frame of the user's own code, else of an installed library above torch."""
    lines = str(getattr(node, "meta", {}).get("stack_trace") or "").splitlines()
    frames = [line.split('"') for line in map(str.strip, lines) if line.startswith('File "')]
    above = [frame for frame in frames if not frame[1].startswith(_BELOW)]
    own = [frame for frame in above if not any(place in frame[1] for place in _INSTALLED)]
    if not above:
        return "an unknown place"
    file, rest = (own or above)[-1][1:3]
    return f"{Path(file).name}:{rest.split('line ')[1].split(',')[0]}"
