"""Tables for the terminal; every function returns what a rich console prints, in order."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from otfuse.core.fold import fold, masked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otfuse.core.graph import FlowGraph
    from otfuse.core.space import Space

_SIDE_BY_SIDE = 3  # recipes whose points stand in one table


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
    if report["compared"]:
        by = Text(f"Figure: {report['compared_by']}, on held-back inputs.")
        parts += [Text(), _compared(report["compared"]), by]
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
    stages: Sequence[tuple[str, str]] = (),
) -> list[RenderableType]:
    """What a dry run says: spaces ``(name, kind, anchor, source)``, problems ``(name, anchor, source, method)``, stages, costs."""
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
    does = _table("stage", "what it does", folded=1)
    for stage in stages:
        does.add_row(*stage)
    shown: list[RenderableType] = [units, Text()] if spaces else []
    shown += [solves, Text()] if problems else []
    shown += [does, Text()] if stages else []
    return [*shown, told]


def evaluated(rows: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """One row per model: examples, loss, and accuracy or perplexity (of regression the squared error alone)."""
    score = _score(rows)
    table = _table("model", ("examples", "right"), (_loss(score), "right"), (score, "right"), folded=0)
    for row in rows:
        table.add_row(str(row["model"]), f"{row['examples']:,}", *_scored(row, score))
    return [table]


def barrier(found: Mapping[str, Any]) -> list[RenderableType]:
    """Point by point loss and accuracy or perplexity of every recipe's line, then barriers. ``found`` is results.json."""
    lines, score, parts = found["lines"], _score(found["parents"]), list[RenderableType]()
    for start in range(0, len(lines), _SIDE_BY_SIDE):
        few = lines[start : start + _SIDE_BY_SIDE]
        along = _table(
            "at", *((head, "right") for line in few for head in (f"{fit(line['recipe'], 20)} {_loss(score)}", score))
        )
        for i, point in enumerate(few[0]["points"]):
            along.add_row(f"{point['at']:.3g}", *(cell for line in few for cell in _scored(line["points"][i], score)))
        parts += [along, Text()]
    heads = ("barrier", "at", "in the middle", f"{_loss(score)} at the end", score)
    barriers = _table("recipe", *((head, "right") for head in heads), folded=0)
    for line in lines:
        gaps = (_number(line["barrier"]), f"{line['highest']:.3g}", _number(line["middle"]))
        barriers.add_row(line["recipe"], *gaps, *_scored(line["points"][-1], score))
    told = "Barrier: the largest gap between the loss and what joins the losses of both ends, in nats (squares of regression); 0 is the anchor, 1 the carried source."
    notes = [Text(note) for note in (told, *found["notes"])]
    return [*parts, barriers, Text(), *evaluated(found["parents"]), Text(), *notes]


def swept(found: Mapping[str, Any]) -> list[RenderableType]:
    """Points of a grid, best first, by the keys that vary; what recipes refuse last. ``found`` is results.json."""
    rows, score = found["rows"], _score(found["parents"])
    keys = [key for key, values in found["grid"].items() if len(values) > 1] or list(found["grid"])
    table = _table(*keys, (_loss(score), "right"), (score, "right"), ("seconds", "right"), folded=0)
    for row in (row for row in rows if "refused" not in row):
        table.add_row(*(str(row["point"][k]) for k in keys), *_scored(row, score), f"{row['seconds']:.1f}")
    parts: list[RenderableType] = [table, Text(), *evaluated(found["parents"])]
    if refused := [row for row in rows if "refused" in row]:
        why = _table(*keys, "refused", folded=len(keys))
        for row in refused:
            why.add_row(*(str(row["point"][k]) for k in keys), row["refused"])
        parts += [Text(), why]
    return [*parts, *(Text(note) for note in ("", *found["notes"]))]


def _score(rows: Sequence[Mapping[str, Any]]) -> str:
    return next((key for key in ("accuracy", "perplexity") if rows and key in rows[0]), "")


def _loss(score: str) -> str:
    return "loss" if score else "squared error"


def _scored(row: Mapping[str, Any], score: str) -> tuple[str, str]:
    """Loss, and accuracy or perplexity, as they are shown; a value that is no number is blank."""
    value = row.get(score)
    shown = "" if value is None else f"{100 * value:.2f} %" if score == "accuracy" else f"{value:.2f}"
    return _number(row["loss"]), shown


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


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


def _compared(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Parents, then stages in order, on held-back inputs."""
    table = _table("parent or stage", ("figure", "right"), ("seconds", "right"), "", folded=0)
    for row in rows:
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.2f}"
        verdict = "" if row["kept"] is None else "kept" if row["kept"] else "undone"
        table.add_row(row["name"], f"{row['figure']:.4f}", seconds, verdict)
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
