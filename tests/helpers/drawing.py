"""A hand-made flow graph of a pre-norm encoder with two blocks, and one with a decoder that reads it."""

from __future__ import annotations

import numpy as np

from otfuse.core.graph import FlowGraph, FlowNode, NodeKind, Reading
from otfuse.core.space import Group, Member, Role, Space

POSITIONS = np.arange(8).reshape(1, 8, 1)


class Maker:
    """Appends nodes and spaces; every method returns the index of what it made."""

    def __init__(self) -> None:
        self.nodes: list[FlowNode] = []
        self.spaces: dict[str, Space] = {}

    def space(self, name: str, kind: str, size: int, copies: int = 1, pinned: str | None = None) -> str:
        group = Group.PINNED if pinned else Group.PERMUTATION
        members = (Member(f"{name}.weight", 0, POSITIONS, Role.PRODUCES),)
        self.spaces[name] = Space(name, f"{name} {kind}", kind, size, copies, group, pinned, members)
        return name

    def node(self, name: str, kind: NodeKind, writes: str = "", **reads: int) -> int:
        units = np.arange(8).reshape(8, 1)
        readings = tuple(Reading(role, index, units) for role, index in reads.items())
        written = (writes,) if writes else ()
        self.nodes.append(FlowNode(len(self.nodes), name, kind, 8, readings, written_spaces=written))
        return len(self.nodes) - 1

    def attention(self, name: str, x: int, memory: int | None, stream: str) -> int:
        qk = self.space(f"{name}.q", "query-key", 2, 4)
        vo = self.space(f"{name}.v", "value-output", 2, 4)
        norm = self.node(f"{name}_norm", NodeKind.NORM, stream, input=x)
        source = norm if memory is None else memory
        query = self.node(f"{name}.q", NodeKind.LINEAR, qk, input=norm)
        key = self.node(f"{name}.k", NodeKind.LINEAR, qk, input=source)
        value = self.node(f"{name}.v", NodeKind.LINEAR, vo, input=source)
        mixed = self.node(name, NodeKind.ATTENTION, vo, query=query, key=key, value=value)
        out = self.node(f"{name}.o", NodeKind.LINEAR, stream, input=mixed)
        return self.node(name, NodeKind.JUNCTION, stream, skip=x, branch=out)

    def mlp(self, name: str, x: int, stream: str) -> int:
        units = self.space(f"{name}.up", "units", 16)
        norm = self.node(f"{name}_norm", NodeKind.NORM, stream, input=x)
        up = self.node(f"{name}.up", NodeKind.LINEAR, units, input=norm)
        act = self.node(f"{name}.act", NodeKind.ACTIVATION, units, input=up)
        down = self.node(f"{name}.down", NodeKind.LINEAR, stream, input=act)
        return self.node(name, NodeKind.JUNCTION, stream, skip=x, branch=down)

    def graph(self) -> FlowGraph:
        return FlowGraph(tuple(self.spaces.values()), tuple(self.nodes), {"w": (8, 8), "b": (8,)})


def encoder(maker: Maker, blocks: int) -> int:
    stream = maker.space("stream", "stream", 8)
    x = maker.node("tokens", NodeKind.SOURCE, stream)
    for block in range(blocks):
        x = maker.attention(f"layers.{block}.attn", x, None, stream)
        x = maker.mlp(f"layers.{block}.mlp", x, stream)
    return maker.node("norm", NodeKind.NORM, stream, input=x)


def two_blocks(blocks: int = 2) -> FlowGraph:
    maker = Maker()
    last = encoder(maker, blocks)
    logits = maker.space("head", "units", 5, pinned="output")
    head = maker.node("head", NodeKind.LINEAR, logits, input=last)
    maker.node("head", NodeKind.OUTPUT, input=head)
    return maker.graph()


def encoder_decoder() -> FlowGraph:
    maker = Maker()
    memory = encoder(maker, 2)
    stream = maker.space("dec.stream", "stream", 8)
    x = maker.node("dec.tokens", NodeKind.SOURCE, stream)
    for block in range(2):
        x = maker.attention(f"dec.layers.{block}.self", x, None, stream)
        x = maker.attention(f"dec.layers.{block}.cross", x, memory, stream)
        x = maker.mlp(f"dec.layers.{block}.mlp", x, stream)
    maker.node("dec.head", NodeKind.OUTPUT, input=x)
    return maker.graph()
