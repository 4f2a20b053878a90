"""What an operator is called, and where in the user's code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

import otfuse.program

if TYPE_CHECKING:
    from torch import fx

_BELOW: Final = tuple(str(Path(package).parent) for package in (torch.__file__, otfuse.program.__file__))
_GENERATED: Final = "<eval_with_key>"  # torch's own rewriting of what cond and its like are given
_INSTALLED: Final = ("/site-packages/", "/dist-packages/")


def where(node: fx.Node) -> str:
    """File and line of the innermost frame of the user's own code, else of an installed library, at last of torch."""
    lines = str(called(node).meta.get("stack_trace") or "").splitlines()
    frames = [line.split('"') for line in map(str.strip, lines) if line.startswith('File "')]
    frames = [frame for frame in frames if not frame[1].startswith(_GENERATED)]
    above = [frame for frame in frames if not frame[1].startswith(_BELOW)]
    own = [frame for frame in above if not any(place in frame[1] for place in _INSTALLED)]
    found = own or above or [frame for frame in frames if frame[1].startswith(_BELOW[0])]
    if not found:
        return "an unknown place"
    file, rest = found[-1][1:3]
    return f"{Path(file).name}:{rest.split('line ')[1].split(',')[0]}"


def called(node: fx.Node) -> fx.Node:
    """The node, or its first use where it is a stored tensor: no line of code gives that."""
    if node.op != "placeholder":
        return node
    return next((user for user in node.users if user.meta.get("stack_trace")), node)


def short_name(node: fx.Node) -> str:
    """The operator's name without library and overload: `slice` for `aten.slice.Tensor`."""
    return getattr(getattr(node.target, "overloadpacket", node.target), "__name__", "")
