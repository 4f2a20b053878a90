"""What the flow graph alone says of a walk, before any map is known: which layers share a map, which units stay, what dies when."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from otfuse.core.graph import NodeKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otfuse.align.pair import Pair
    from otfuse.core.graph import FlowGraph
    from otfuse.measure.probe import Side

KEEPING = (NodeKind.NORM, NodeKind.SCALE, NodeKind.ACTIVATION)
_FEW = 2  # numbers per unit


def magnitude_key(index: int, reading: int) -> int:
    """One number for (junction, reading): how large what a junction adds is, unit by unit."""
    return index * 64 + reading


def shared_maps(pair: Pair, *, tied: bool) -> dict[int, tuple[int, ...]]:
    """Layers that must share a map: factors of a product always, query and key when tied. Node -> its group."""
    groups: dict[int, tuple[int, ...]] = {}
    for node in pair.anchor.graph.nodes:
        if node.kind is NodeKind.PRODUCT:
            roles: tuple[str, ...] = ("factor",)
        elif node.kind is NodeKind.ATTENTION and tied:
            roles = ("key", "query")
        else:
            continue
        readings = [r for role in roles for r in node.readings if r.role == role]
        made = [pair.producer(r.node) for r in readings]
        sizes = {tuple(node.size for node in pair.nodes(i)) for i in made}
        kinds = {pair.anchor.graph.nodes[i].kind for i in made}
        if len(made) == len(set(made)) and len(sizes) == 1 and kinds == {NodeKind.LINEAR}:
            groups |= dict.fromkeys(made, tuple(made))
    return groups


def mute_tables(pair: Pair) -> dict[int, int]:
    """Stored tables with one or two numbers per unit (a class token, kinds of tokens) -> the junction where they meet others.

    So few numbers tell units apart by chance only: a soft coupling of them mixes all. They take the map that the others
    give the junction. (``unread: compare`` gives them a problem of their own, as published.)
    """
    nodes, found = pair.anchor.graph.nodes, dict[int, int]()
    few = {n.index for n in nodes if n.kind is NodeKind.SOURCE and all(_is_few(s, n.index) for s in pair.sides())}
    for node in (n for n in nodes if n.kind is NodeKind.JUNCTION):
        telling = [r for r in node.readings if r.node not in few and r.role in ("skip", "branch")]
        for r in node.readings if telling else ():
            in_order = len(r.units) == nodes[r.node].size and (r.units[:, 0] == np.arange(len(r.units))).all()
            if r.node in few and in_order:
                found.setdefault(r.node, node.index)
    return found


def _is_few(side: Side, index: int) -> bool:
    node = side.graph.nodes[index]
    return bool(node.pieces) and all(prod(side.graph.shapes[p.tensor]) <= _FEW * node.size for p in node.pieces)


def last_uses(graph: FlowGraph, together: Mapping[int, tuple[int, ...]]) -> dict[int, list[int]]:
    """For every node, the nodes whose maps nobody asks for after it: those that read them, or share them, are done."""
    last = {node.index: node.index for node in graph.nodes}
    for node in graph.nodes:
        for read in node.readings:
            last[read.node] = max(last[read.node], node.index)
    for index, group in together.items():
        last[group[0]] = max(last[group[0]], index)
    dies: dict[int, list[int]] = {}
    for index, at in last.items():
        dies.setdefault(at, []).append(index)
    return dies


def classifier_tensors(graph: FlowGraph) -> frozenset[str]:
    """Tensors of the layer that makes the outputs."""
    nodes = graph.nodes
    last = [r.node for node in nodes if node.kind is NodeKind.OUTPUT for r in node.readings]
    return frozenset(p.tensor for i in last for p in nodes[i].pieces)


def kept_units(pair: Pair) -> frozenset[int]:
    """Nodes whose units keep the anchor's order when the classifier is the anchor's.

    Back to the branches of the last junction (docs/method.md, 6.6).
    """
    nodes = pair.anchor.graph.nodes
    todo = [r.node for node in nodes if node.kind is NodeKind.OUTPUT for r in node.readings]
    todo = [r.node for i in todo for r in nodes[i].readings]
    kept: set[int] = set()
    while todo:
        index = todo.pop()
        kept.add(index)
        node = nodes[index]
        if node.kind in KEEPING:
            todo += [r.node for r in node.readings[:1]]
        elif node.kind is NodeKind.JUNCTION:
            kept |= {r.node for r in node.readings if r.role == "branch"}
    return frozenset(kept)


def needed_nodes(pair: Pair) -> list[int]:
    """Nodes whose units are compared: observed layers and sources that are not fixed."""
    return [
        node.index
        for node in pair.anchor.graph.nodes
        if node.kind in (NodeKind.LINEAR, NodeKind.SOURCE) and pair.observed(node.index) and not pair.fixed(node.index)
    ]
