"""Tables for the terminal; every function returns what a rich console prints, in order."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from otfuse.report.fold import fold, masked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from otfuse.core.graph import FlowGraph
    from otfuse.core.space import Space


def inspected(graph: FlowGraph, verification: Any) -> list[RenderableType]:
    """The spaces of a model, repeated blocks folded, and the outcome of the gate where it ran."""
    table = _table("space", "kind", ("count", "right"), ("size", "right"), "group", ("tensors", "right"))
    pinned = _table("pinned", ("count", "right"), ("size", "right"), "reason")
    for row in fold(graph.spaces, lambda s: s.name.removesuffix(f" {s.kind}"), _alike):
        space = graph.spaces[row.indices[0]]
        size = f"{space.copies} x {space.size}" if space.copies > 1 else f"{space.size}"
        if space.pinned:
            pinned.add_row(fit(row.name, 32), _times(row.count), size, space.pinned)
        else:
            tensors = str(len({m.tensor for m in space.members}))
            table.add_row(
                fit(row.name, 32), space.kind, _times(row.count), size, space.exact or str(space.group), tensors
            )
    lines = [f"{graph.parameters:,} parameters, {len(graph.spaces)} spaces, {len(graph.free)} of them free to permute."]
    if any(s.copies > 1 for s in graph.spaces):
        lines.append("Size `4 x 16` is 16 units in each of 4 copies, such as heads; every copy has its own map.")
    if verification is not None:
        lines.append(
            f"Proved: random elements of all spaces change the output by {verification.error:.1e} (relative); "
            f"leaving one member out changes it by {verification.control:.1e}."
        )
    parts: list[RenderableType] = [table, Text()]
    if pinned.row_count:
        parts += [pinned, Text()]
    return [*parts, *(Text(line) for line in [*lines, *graph.notes])]


def fused(report: Mapping[str, Any]) -> list[RenderableType]:
    """What was solved (folded), and the seconds and peak memory of each stage. ``report`` is ``Report.to_dict()``."""
    stages = _table("stage", ("seconds", "right"), ("peak MiB", "right"))
    for stage in report["stages"]:
        stages.add_row(stage["name"], f"{stage['seconds']:.2f}", f"{stage['peak_mib']:.0f}")
    stages.add_section()
    stages.add_row("together", f"{sum(s['seconds'] for s in report['stages']):.2f}", "")
    parts: list[RenderableType] = [stages]
    if report["solved"]:
        parts[:0] = [_solved(report["solved"]), Text()]
    loose = [s for s in report["solved"] if not s["converged"]]
    if loose:
        parts.append(
            Text(f"{len(loose)} of {len(report['solved'])} problems did not converge, first {loose[0]['name']}.")
        )
    gate = report["gate"]
    if gate:
        parts.append(Text("Gate: " + ", ".join(f"{key} {value:.1e}" for key, value in gate.items()) + "."))
    return [*parts, *(Text(note) for note in report["notes"])]


def plan(
    spaces: Sequence[tuple[str, str, int, int]],
    problems: Sequence[tuple[str, int, int, str]],
    memory_mib: float,
    seconds: float,
) -> list[RenderableType]:
    """What a dry run says: spaces ``(name, kind, anchor, source)``, problems ``(name, anchor, source, method)``, costs."""
    units = _table("space", "kind", ("count", "right"), ("anchor", "right"), ("source", "right"))
    for row in fold(spaces, lambda s: s[0].removesuffix(f" {s[1]}"), lambda s: s[1:]):
        _, kind, anchor, source = spaces[row.indices[0]]
        units.add_row(fit(row.name), kind, _times(row.count), str(anchor), str(source))
    solves = _table("problem", ("count", "right"), ("size", "right"), "method")
    for row in fold(problems, lambda p: p[0], lambda p: p[1:]):
        _, anchor, source, method = problems[row.indices[0]]
        solves.add_row(fit(row.name), _times(row.count), f"{anchor} x {source}", method)
    memory = f"{memory_mib:.1f}" if memory_mib < 10 else f"{memory_mib:,.0f}"
    took = (
        f"{seconds:.1f} s" if seconds < 10 else f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 60:,.0f} minutes"
    )
    told = Text(f"Expected: {memory} MiB above what importing takes, about {took}.")
    return [units, Text(), solves, Text(), told] if spaces or problems else [told]


def evaluated(rows: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """One row per model: examples, loss, and accuracy or perplexity."""
    score = next((key for key in ("accuracy", "perplexity") if rows and key in rows[0]), "accuracy")
    table = _table("model", ("examples", "right"), ("loss", "right"), (score, "right"), folded=0)
    for row in rows:
        value = row.get(score)
        shown = "" if value is None else f"{100 * value:.2f} %" if score == "accuracy" else f"{value:.2f}"
        table.add_row(str(row["model"]), f"{row['examples']:,}", f"{row['loss']:.4f}", shown)
    return [table]


def figures(values: Mapping[str, Any]) -> Table:
    """Names and plain values, one per row; what is nested is left to ``--json``."""
    table = _table("figure", ("value", "right"), folded=1)
    for key, value in values.items():
        if isinstance(value, (bool, int, str, float)):
            table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table


def _solved(solved: Sequence[Mapping[str, Any]]) -> Table:
    """Folded; with the number of the source, counted from 1, where there are several."""
    numbers = {source: str(i) for i, source in enumerate(dict.fromkeys(s["source"] for s in solved), 1)}
    columns: list[str | tuple[str, str]] = ["problem", ("count", "right"), ("size", "right"), "method"]
    several = len(numbers) > 1
    columns[1:1] = [("source", "right")] if several else []
    table = _table(*columns, ("before", "right"), ("after", "right"))
    for row in fold(solved, lambda s: s["name"], lambda s: (tuple(s["size"]), s["method"], s["source"])):
        first, group = solved[row.indices[0]], [solved[i] for i in row.indices]
        size = " x ".join(map(str, first["size"]))
        before, after = (sum(s[key] for s in group) / len(group) for key in ("before", "after"))
        cells = [_times(row.count), size, first["method"], f"{before:.4g}", f"{after:.4g}"]
        table.add_row(fit(row.name), *([numbers[first["source"]]] if several else []), *cells)
    return table


def _alike(space: Space) -> tuple[Any, ...]:
    members = sorted((masked(m.tensor), m.axis, str(m.role)) for m in space.members)
    return space.kind, space.size, space.copies, space.group, space.exact, space.pinned, tuple(members)


def _times(count: int) -> str:
    return f"{count} x" if count > 1 else ""


def fit(name: str, width: int = 36) -> str:
    """A dotted name in that width.

    The shortest components inside give way first, the later before the earlier, a number as if it were a short word;
    never those that count blocks.
    """
    parts = re.findall(r"\{[^}]*\}|[^.]+", name)
    while len(short := _joined(parts)) > width:
        inner = [i for i, part in enumerate(parts[1:-1], 1) if part[0] not in "{\u2026"]
        if not inner:
            return f"{short[: width // 2 - 1]}\u2026{short[-(width // 2) :]}"
        parts[min(inner, key=lambda i: (5 if parts[i].isdigit() else len(parts[i]), -i))] = "\u2026"
    return short if "\u2026" in parts else name


def _joined(parts: Sequence[str]) -> str:
    """The components with dots between them; any number of those left out is one sign."""
    return re.sub(r"\.?(?:\u2026\.?)+", "\u2026", ".".join(parts))


def _table(*columns: str | tuple[str, str], folded: int | None = None) -> Table:
    """A plain table; a column is a heading, or a heading with ``right`` for numbers.

    Names in the first column and numbers are never broken, but for the column ``folded``, which may hold long paths.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        name, right = (column, False) if isinstance(column, str) else (column[0], True)
        table.add_column(
            name,
            justify="right" if right else "left",
            no_wrap=index != folded and (right or index == 0),
            overflow="fold",
        )
    return table
