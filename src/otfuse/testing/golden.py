"""Flow graphs as text that a person can review in a diff; ``python -m otfuse.testing.golden FOLDER`` rewrites them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from otfuse.testing.examples import EXAMPLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otfuse.core.graph import FlowGraph, FlowNode
    from otfuse.core.space import Space

GOLDEN = ("plain_vit", "hf_vit", "bert", "gpt2", "llama_gqa", "t5", "mixtral", "resnet")


def describe(graph: FlowGraph) -> str:
    """Every space with its members and every node with what it reads, one per line."""
    lines = [line for space in graph.spaces for line in _space(space)]
    lines += ["", *map(_node, graph.nodes)] if graph.nodes else []
    return "\n".join([*lines, ""])


def golden(name: str) -> str:
    """The description of one example's graph, headed by the name that rebuilds it."""
    import otfuse

    return f"# example {name}\n" + describe(otfuse.trace(*EXAMPLES[name].build(0)))


def _space(space: Space) -> Iterator[str]:
    held = f"pinned ({space.pinned})" if space.pinned else str(space.group)
    yield f"space {space.id} | {space.name} | {space.kind} | {space.size} units x {space.copies} | {held}"
    for member in space.members:
        batch = "" if member.batch_axis is None else f" by axis {member.batch_axis}"
        first = member.positions[0, :2, :3].tolist()
        yield f"    {member.role} {member.tensor}[{member.axis}]{batch} width {member.positions.shape[2]} {first}"


def _node(node: FlowNode) -> str:
    reads = ", ".join(f"{reading.role} {reading.node}" for reading in node.readings)
    pieces = ", ".join(piece.tensor for piece in node.pieces)
    return f"node {node.index} {node.kind} {node.size} | {node.name} | {reads} | {pieces} | writes {', '.join(node.written_spaces)}"


def main() -> None:
    """Write one file per golden example into the folder given."""
    folder = Path(sys.argv[1])
    for name in GOLDEN:
        (folder / f"{name}.txt").write_text(golden(name), encoding="utf-8")


if __name__ == "__main__":
    main()
