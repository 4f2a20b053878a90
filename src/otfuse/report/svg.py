"""The flow graph as one self-contained picture: the forward pass from bottom to top."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from otfuse.core.graph import NodeKind
from otfuse.report.layout import Layout, lay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otfuse.core.graph import FlowGraph, FlowNode
    from otfuse.core.space import Space

LANE: Final = 136.0  # width of a lane
ROW: Final = 62.0  # height of a row
BOX: Final = (118.0, 26.0)
EDGE: Final = 40.0  # margin
FILL: Final = {
    NodeKind.SOURCE: "#d9ead3", NodeKind.LINEAR: "#cfe2f3", NodeKind.NORM: "#fff2cc", NodeKind.SCALE: "#fce5cd",
    NodeKind.ACTIVATION: "#f4cccc", NodeKind.JUNCTION: "#ffffff", NodeKind.PRODUCT: "#ead1dc", NodeKind.CONCAT: "#e2e2e2",
    NodeKind.ATTENTION: "#d9d2e9", NodeKind.OPAQUE: "#bbbbbb", NodeKind.OUTPUT: "#b6d7a8",
}  # fmt: skip
_GATHERS: Final = (NodeKind.ATTENTION, NodeKind.PRODUCT)  # what several labelled boxes side by side lead to
STYLE: Final = """
text{font:10px 'DejaVu Sans',Verdana,sans-serif;fill:#222}
.box{stroke:#555;stroke-width:1}.name{text-anchor:middle}
.edge{fill:none;stroke:#777;stroke-width:1.2}.spine{fill:none;stroke:#c0392b;stroke-width:3.5}
.far{fill:none;stroke:#2471a3;stroke-width:1.4;stroke-dasharray:5 3}
.space{font-size:9px;fill:#1a5276;paint-order:stroke;stroke:#fff;stroke-width:3px}
.stream{font-size:9px;fill:#a93226;paint-order:stroke;stroke:#fff;stroke-width:3px}
.block{fill:#f7f7f9;stroke:#d5d5dc}.title{font-size:10px;fill:#777}.legend{font-size:10px}
"""


def draw(graph: FlowGraph) -> str:
    """An SVG document: residual lines as straight spines, branches beside them, boxes coloured by kind.

    Edges carry the space that flows along them and its size (``4 x 16``: 4 copies of 16 units); a tooltip on every box
    gives module, space names and the place in the user's code.
    """
    return _Drawing.of(graph).document()


@dataclass(frozen=True, slots=True)
class _Drawing:
    graph: FlowGraph
    layout: Layout
    left: tuple[float, ...]  # x of every column's spine
    size: tuple[float, float]
    spaces: dict[str, Space]

    @classmethod
    def of(cls, graph: FlowGraph) -> _Drawing:
        layout = lay(graph)
        x, spines = EDGE, []
        for reach in layout.lanes:
            x += 30 + reach * LANE + BOX[0] / 2
            spines.append(x)
            x += BOX[0] / 2 + 70
        width = max(x + EDGE, 960.0)
        return cls(
            graph, layout, tuple(spines), (width, layout.rows * ROW + 2 * EDGE + 40), {s.id: s for s in graph.spaces}
        )

    def document(self) -> str:
        """The whole file."""
        width, height = self.size
        parts = [
            *self._blocks(),
            *self._edges(),
            *(self._node(n) for n in self.graph.nodes),
            *self._labels(),
            *self._legend(),
        ]
        arrow = (
            '<marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
            '<path d="M0 0L8 4L0 8z" fill="#666"/></marker>'
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}"><style>{STYLE}</style><defs>{arrow}</defs>'
            f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
        )

    def _at(self, column: int, lane: float, row: int) -> tuple[float, float]:
        return self.left[column] + lane * LANE, self.size[1] - EDGE - 20 - row * ROW

    def _spot(self, index: int) -> tuple[float, float]:
        return self._at(*self.layout.place[index])

    def _on_spine(self, index: int) -> bool:
        return any(index in column.spine for column in self.layout.columns)

    def _half(self, node: FlowNode) -> float:
        return 8.0 if node.kind is NodeKind.JUNCTION else BOX[1] / 2

    def _wide(self, node: FlowNode) -> float:
        return 8.0 if node.kind is NodeKind.JUNCTION else BOX[0] / 2

    # boxes
    def _node(self, node: FlowNode) -> str:
        x, y = self._spot(node.index)
        spaces = "; ".join(self._describe(s) for s in node.written_spaces)
        tip = escape("\n".join(filter(None, (f"{node.kind}: {node.name}", spaces and f"writes {spaces}", node.where))))
        if node.kind is NodeKind.JUNCTION:
            shape = f'<circle class="box" cx="{x:.1f}" cy="{y:.1f}" r="8" fill="#fff"/><path d="M{x - 4:.1f} {y:.1f}h8M{x:.1f} {y - 4:.1f}v8" stroke="#555"/>'
            return f"<g><title>{tip}</title>{shape}</g>"
        width, height = BOX
        box = f'<rect class="box" x="{x - width / 2:.1f}" y="{y - height / 2:.1f}" width="{width:.0f}" height="{height:.0f}" rx="5" fill="{FILL[node.kind]}"/>'
        return f'<g><title>{tip}</title>{box}<text class="name" x="{x:.1f}" y="{y + 3.5:.1f}">{escape(_short(node))}</text></g>'

    def _describe(self, space_id: str) -> str:
        space = self.spaces.get(space_id)
        return f"{space.name} ({_size(space)}, {space.group})" if space else space_id

    # lines
    def _edges(self) -> Iterator[str]:
        for node in self.graph.nodes:
            seen: set[int] = set()
            for reading in node.readings:
                if reading.node not in seen:
                    seen.add(reading.node)
                    yield self._edge(self.graph.nodes[reading.node], node)

    def _edge(self, source: FlowNode, target: FlowNode) -> str:
        (c1, _, r1), (c2, _, r2) = self.layout.place[source.index], self.layout.place[target.index]
        (x1, y1), (x2, y2) = self._spot(source.index), self._spot(target.index)
        y1, bottom = y1 - self._half(source), y2 + self._half(target)
        bends = [self._at(c1, *bend) for bend in self.layout.bends.get((source.index, target.index), [])]
        both_on_spine = self._on_spine(source.index) and self._on_spine(target.index)
        if c1 != c2:
            return self._far((x1 + self._wide(source), y1 + self._half(source)), (x2, bottom), self._bus(c2))
        if both_on_spine and x1 == x2:
            return f'<path class="spine" d="M{x1:.1f} {y1:.1f}V{bottom:.1f}"/>'
        if not bends and r2 - r1 > 1 and not self._on_spine(source.index) and not self._on_spine(target.index):
            return self._far((x1 - BOX[0] / 2, y1 + self._half(source)), (x2, bottom), self._bus(c2))
        if self._on_spine(target.index) and not self._on_spine(source.index):
            x_end = x2 - (8 if target.kind is NodeKind.JUNCTION else BOX[0] / 2)
            return f'<path class="edge" marker-end="url(#a)" d="M{x1:.1f} {y1:.1f}C{x1:.1f} {y2:.1f},{x1:.1f} {y2:.1f},{x_end:.1f} {y2:.1f}"/>'
        if self._on_spine(source.index) and x1 != x2:  # a turn-off just above the source
            high = bottom + 8
            start = min(y1 + 2, self.size[1])
            return f'<path class="edge" marker-end="url(#a)" d="M{x1:.1f} {start:.1f}C{x1:.1f} {high:.1f},{x2:.1f} {start:.1f},{x2:.1f} {bottom:.1f}"/>'
        if target.kind in _GATHERS and not bends and x1 != x2:
            return f'<path class="edge" marker-end="url(#a)" d="{_elbow((x1, y1), (x2, bottom))}"/>'
        return f'<path class="edge" marker-end="url(#a)" d="{_curve([(x1, y1), *bends, (x2, bottom)])}"/>'

    def _bus(self, column: int) -> float:
        return self.left[column] - self.layout.lanes[column] * LANE - BOX[0] / 2 - 24

    def _far(self, start: tuple[float, float], end: tuple[float, float], bus: float) -> str:
        """A line to another column or another block: sideways to a bus, along it, and into the box from below."""
        x, y = end
        path = f"M{start[0]:.1f} {start[1]:.1f}H{bus:.1f}V{y + 13:.1f}H{x - 9:.1f}q9 0 9 -9V{y:.1f}"
        return f'<path class="far" marker-end="url(#a)" d="{path}"/>'

    # words
    def _labels(self) -> Iterator[str]:
        junctions = (n for n in self.graph.nodes if n.kind is NodeKind.JUNCTION and self._on_spine(n.index))
        streams = {space for node in junctions for space in node.written_spaces}
        for node in self.graph.nodes:
            x, y = self._spot(node.index)
            spine = self._on_spine(node.index)
            shown = [self.spaces[s] for s in node.written_spaces if s in self.spaces]
            if not shown or (node.kind in (NodeKind.NORM, NodeKind.ACTIVATION) and not spine):
                continue
            tip = escape("; ".join(self._describe(s.id) for s in shown))
            names = [f"{'stream' if s.id in streams else _marked(s)} {_size(s)}" for s in shown[: 1 if spine else None]]
            distinct = list(dict.fromkeys(names))  # a rotary head has two spaces of one kind and size
            lines = [" \u00b7 ".join(distinct[:-1]), distinct[-1]] if len(distinct) > 1 else distinct
            x, y = x + (12 if spine else 5), y - self._half(node) - 5
            for height, line in enumerate(reversed(lines)):
                style = "stream" if spine else "space"
                yield f'<text class="{style}" x="{x:.1f}" y="{y - 10 * height:.1f}"><title>{tip}</title>{escape(line)}</text>'

    def _blocks(self) -> Iterator[str]:
        """A pale frame around the branches whose modules share a numbered prefix."""
        for number, column in enumerate(self.layout.columns):
            rows: dict[str, list[int]] = {}
            for stop in column.spine:
                members = column.branches.get(stop, [])
                prefix = _block(self.graph.nodes[i].name for i in members or [stop])
                if prefix:
                    rows.setdefault(prefix, []).extend(
                        [*(self.layout.place[i][2] for i in members), self.layout.place[stop][2]]
                    )
            left = self.left[number] - self.layout.lanes[number] * LANE - BOX[0] / 2 - 8
            for prefix, found in rows.items():
                top, bottom = self._at(number, 0, max(found))[1] - 20, self._at(number, 0, min(found))[1] + 19
                yield f'<rect class="block" x="{left:.1f}" y="{top:.1f}" width="{self.left[number] - left + 22:.1f}" height="{bottom - top:.1f}" rx="9"/>'
                yield f'<text class="title" x="{left + 8:.1f}" y="{top + 15:.1f}">{escape(prefix)}</text>'

    def _legend(self) -> Iterator[str]:
        kinds = sorted({n.kind for n in self.graph.nodes} - {NodeKind.JUNCTION})
        x, y = EDGE, 16.0
        for kind in kinds:
            yield f'<rect class="box" x="{x:.0f}" y="{y:.0f}" width="14" height="12" rx="3" fill="{FILL[kind]}"/><text class="legend" x="{x + 19:.0f}" y="{y + 10:.0f}">{kind}</text>'
            x += 34 + 6.2 * len(kind)
        yield f'<path class="spine" d="M{x:.0f} {y + 6:.0f}h22"/><text class="legend" x="{x + 28:.0f}" y="{y + 10:.0f}">residual line</text>'
        x += 112
        yield f'<circle class="box" cx="{x:.0f}" cy="{y + 6:.0f}" r="7" fill="#fff"/><path d="M{x - 4:.0f} {y + 6:.0f}h8m-4 -4v8" stroke="#555"/><text class="legend" x="{x + 13:.0f}" y="{y + 10:.0f}">junction</text>'
        x += 78
        yield f'<text class="space" x="{x:.0f}" y="{y + 10:.0f}">space, copies x size</text>'


def _elbow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """Straight up, and sideways only just below the end: above the label that stands beside the start."""
    (x1, y1), (x2, y2) = start, end
    side = 7 if x2 > x1 else -7
    return f"M{x1:.1f} {y1:.1f}V{y2 + 16:.1f}q0 -7 {side} -7H{x2 - side:.1f}q{side} 0 {side} -9"


def _curve(points: list[tuple[float, float]]) -> str:
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x1, y1), (x2, y2) in pairwise(points):
        middle = (y1 + y2) / 2
        path += f"C{x1:.1f} {middle:.1f},{x2:.1f} {middle:.1f},{x2:.1f} {y2:.1f}"
    return path


def _size(space: Space) -> str:
    return f"{space.copies} x {space.size}" if space.copies > 1 else str(space.size)


def _marked(space: Space) -> str:
    return f"{space.kind} (pinned)" if space.pinned else space.kind


def _short(node: FlowNode) -> str:
    """The end of the module's name that fits the box."""
    name = re.sub(r"^.*?\d+\.", "", node.name) or str(node.kind)
    if re.search(r"(^|\.)\d+$", name):  # the block itself holds it: the number says nothing
        name = str(node.kind)
    while len(name) > 17 and "." in name:
        name = name.partition(".")[2]
    return name if len(name) <= 17 else f"{name[:16]}\u2026"


def _block(names: Iterator[str]) -> str:
    """``encoder.layer.0`` if all names begin with it: up to and with the first number."""
    found = {m.group(0) if (m := re.match(r".*?\b\d+(?=\.|$)", name)) else "" for name in names}
    return found.pop() if len(found) == 1 else ""
