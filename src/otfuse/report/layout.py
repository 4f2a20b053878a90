"""Where the nodes of a flow graph go on paper: streams as straight spines, branches in levels to their left.

A *spine* is a chain of junctions joined by their skips. Every other node belongs to the first spine node that it leads
to (a *branch*), or, behind the last one, to the *tail* of its column. Models without junctions are all tail.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from otfuse.core.graph import NodeKind

if TYPE_CHECKING:
    from otfuse.core.graph import FlowGraph, FlowNode

_SIDE: Final = {"value": 0, "key": 1, "query": 2}  # left to right below an attention


@dataclass(slots=True)
class Column:
    """One column: its spine nodes in forward order, and the branch nodes of each (None: the tail)."""

    spine: list[int] = field(default_factory=list)
    branches: dict[int | None, list[int]] = field(default_factory=lambda: defaultdict(list))


@dataclass(slots=True)
class Layout:
    """Grid places: ``place[node] = (column, lane, row)``; lane 0 is the spine, -1, -1.5, -2, ... lie left of it."""

    columns: list[Column]
    place: dict[int, tuple[int, float, int]]
    bends: dict[tuple[int, int], list[tuple[float, int]]]  # edge (from, to) -> lanes and rows it passes, upwards
    lanes: list[float]  # per column, how far left it reaches
    rows: int


def lay(graph: FlowGraph) -> Layout:
    """Places for all nodes; rows grow with the forward pass and are counted in each column by itself."""
    columns, home = _columns(graph)
    _attach(graph, columns, home)
    place: dict[int, tuple[int, float, int]] = {}
    bends: dict[tuple[int, int], list[tuple[float, int]]] = {}
    lanes, rows = [], 0
    for number, column in enumerate(columns):
        row = -1
        reach = 0.0
        for stop in [*column.spine, None]:
            levels, passed = _levels(graph, column.branches.get(stop, []), lean_late=stop is not None)
            width = max((len(level) for level in levels), default=0)
            centre = 0.0 if stop is None else -(width + 1) / 2
            bends.update(_put(levels, passed, place, (number, centre, row + 1)))
            reach = max(reach, (width - 1) / 2 - centre)
            row += len(levels)
            if stop is not None:
                row += 1
                place[stop] = (number, 0.0, row)
        lanes.append(reach)
        rows = max(rows, row + 1)
    return Layout(columns, place, bends, lanes, rows)


def _columns(graph: FlowGraph) -> tuple[list[Column], dict[int, int]]:
    """Spines found from the last junction backwards; one that grows out of another continues its column."""
    spines: list[list[int]] = []
    taken: dict[int, int] = {}
    for node in reversed(graph.nodes):
        if node.kind is NodeKind.JUNCTION and node.index not in taken and node.reading("skip") is not None:
            chain = _chain(graph, node, taken)
            taken.update(dict.fromkeys(chain, len(spines)))
            spines.append(chain)
    columns: list[Column] = []
    home: dict[int, int] = {}
    for chain in sorted(spines, key=lambda c: c[0]):
        before = [home[a] for a in sorted(_ancestors(graph, chain[0])) if a in home]
        if before:
            columns[before[-1]].spine += chain
        else:
            columns.append(Column(list(chain)))
        home.update(dict.fromkeys(chain, before[-1] if before else len(columns) - 1))
    return columns or [Column()], home


def _chain(graph: FlowGraph, last: FlowNode, taken: dict[int, int]) -> list[int]:
    """The nodes of a stream, from its first to ``last``: back along skips, and through what keeps the units."""
    chain, node = [last.index], last
    keeps = (NodeKind.NORM, NodeKind.SCALE, NodeKind.ACTIVATION, NodeKind.JUNCTION, NodeKind.CONCAT)
    while node.kind in keeps and node.readings:
        reading = node.reading("skip") or node.readings[-1]
        if reading.node in taken:
            break
        node = graph.nodes[reading.node]
        chain.append(node.index)
    return chain[::-1]


def _ancestors(graph: FlowGraph, index: int) -> set[int]:
    found: set[int] = set()
    todo = [index]
    while todo:
        for reading in graph.nodes[todo.pop()].readings:
            if reading.node not in found:
                found.add(reading.node)
                todo.append(reading.node)
    return found


def _attach(graph: FlowGraph, columns: list[Column], home: dict[int, int]) -> None:
    """Every node off the spines goes to the first spine node it leads to, or to the tail of its nearest ancestor.

    What closes one column and is read in another, such as the last norm of an encoder, stays in its own.
    """
    goals: dict[int, set[int]] = defaultdict(set)
    for node in reversed(graph.nodes):
        reached = {node.index} if node.index in home else goals[node.index]
        for reading in node.readings:
            if reading.node not in home:
                goals[reading.node] |= reached
    keeps = (NodeKind.NORM, NodeKind.SCALE, NodeKind.ACTIVATION)
    where = dict(home)
    for node in graph.nodes:
        if node.index in home:
            continue
        stop = min(goals[node.index], default=None)
        before = [where[r.node] for r in node.readings]
        closes = (
            stop is not None
            and set(before) not in (set(), {home[stop]})
            and (node.kind in keeps or len(goals[node.index]) > 1)
        )
        if stop is None or closes:
            stop, column = None, before[0] if before else len(columns) - 1
        else:
            column = home[stop]
        where[node.index] = column
        columns[column].branches[stop].append(node.index)


def _levels(
    graph: FlowGraph, members: list[int], *, lean_late: bool
) -> tuple[list[list[int | tuple[int, int, int]]], list[tuple[int, int]]]:
    """Members by longest path, ordered to cross little; an edge that passes a level takes a place ``(from, to, level)`` there."""
    inside = set(members)
    level: dict[int, int] = {}
    for index in members:
        level[index] = max((level[r.node] + 1 for r in graph.nodes[index].readings if r.node in inside), default=0)
    if lean_late:
        for index in members:
            readers = [level[m] for m in members if any(r.node == index for r in graph.nodes[m].readings)]
            if readers and not any(r.node in inside for r in graph.nodes[index].readings):
                level[index] = min(readers) - 1
    levels: list[list[int | tuple[int, int, int]]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
    passed = []
    for index in members:
        levels[level[index]].append(index)
        for source in {r.node for r in graph.nodes[index].readings if r.node in inside}:
            levels_between = range(level[source] + 1, level[index])
            if levels_between:
                passed.append((source, index))
            for between in levels_between:
                levels[between].append((source, index, between))
    _order(graph, levels, set(members))
    return levels, passed


def _order(graph: FlowGraph, levels: list[list[int | tuple[int, int, int]]], inside: set[int]) -> None:
    """Barycentre ordering, upwards; below an attention value, key and query stand from left to right."""
    side: dict[int, int] = {}
    for level in levels:
        for item in level:
            if isinstance(item, int):
                side.update({r.node: _SIDE[r.role] for r in graph.nodes[item].readings if r.role in _SIDE})
    spot: dict[int | tuple[int, int, int], float] = {}
    for level in levels:

        def centre(item: int | tuple[int, int, int]) -> tuple[float, int]:
            if isinstance(item, tuple):
                source, target, row = item
                return spot.get((source, target, row - 1), spot.get(source, 0.0)) + 0.01, 3
            below = [
                spot.get((r.node, item, 0), spot.get(r.node, 0.0))
                for r in graph.nodes[item].readings
                if r.node in inside
            ]
            return (sum(below) / len(below) if below else 0.0), side.get(item, 1)

        level.sort(key=centre)
        for place, item in enumerate(level):
            spot[item] = place - (len(level) - 1) / 2


def _put(
    levels: list[list[int | tuple[int, int, int]]],
    passed: list[tuple[int, int]],
    place: dict[int, tuple[int, float, int]],
    origin: tuple[int, float, int],
) -> dict[tuple[int, int], list[tuple[float, int]]]:
    """Fill ``place`` for one branch from ``(column, centre lane, first row)``; returns the bends of its long edges."""
    column, centre, first = origin
    bends: dict[tuple[int, int], list[tuple[float, int]]] = {edge: [] for edge in passed}
    for height, level in enumerate(levels):
        for spot, item in enumerate(level):
            lane = centre + spot - (len(level) - 1) / 2
            if isinstance(item, int):
                place[item] = (column, lane, first + height)
            else:
                bends[item[0], item[1]].append((lane, first + height))
    return bends
