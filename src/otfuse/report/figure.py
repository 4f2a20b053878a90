"""Plots of `barrier` and `sweep` as SVG files: loss, and accuracy beside it where there is one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    Row = Mapping[str, Any]

_METRICS = {"loss": "loss, nats", "accuracy": "accuracy, %"}
_FEW_TICKS = 12


def draw_barrier(found: Mapping[str, Any], file: Path) -> None:
    """One curve per recipe over the way from the anchor (0) to the carried source (1); dashed: what joins its ends."""

    def draw(axes: Any, metric: str) -> None:
        for line in found["lines"]:
            at, values = [p["at"] for p in line["points"]], [_value(p, metric) for p in line["points"]]
            (drawn,) = axes.plot(at, values, marker="o", markersize=3, label=line["recipe"])
            ends = [values[0], values[-1]]
            axes.plot([0, 1], ends, linestyle="--", linewidth=0.8, alpha=0.6, color=drawn.get_color())
        axes.set(xlabel="from the anchor (0) to the carried source (1)")

    rows = [point for line in found["lines"] for point in line["points"]]
    _picture(file, rows, draw, legend=len(found["lines"]))


def draw_sweep(found: Mapping[str, Any], file: Path) -> None:
    """The metric against the first key of the grid, one curve per value of the second; of further keys the best value."""
    keys = [key for key, values in found["grid"].items() if len(values) > 1] or list(found["grid"])
    rows = [row for row in found["rows"] if row.get("loss") is not None]
    places, ticks, log = _places(found["grid"][keys[0]])
    curves = (
        [v for v in found["grid"][keys[1]] if any(r["point"][keys[1]] == v for r in rows)] if len(keys) > 1 else [None]
    )

    def draw(axes: Any, metric: str) -> None:
        for value in curves:
            own = [row for row in rows if len(keys) == 1 or row["point"][keys[1]] == value]
            best = {
                found["grid"][keys[0]].index(row["point"][keys[0]]): row for row in reversed(own)
            }  # rows: best first
            at = sorted(best, key=places.__getitem__)
            shown = [_value(best[i], metric) for i in at]
            axes.plot([places[i] for i in at], shown, marker="o", label="" if value is None else f"{keys[1]} {value}")
        for parent in found["parents"]:
            axes.axhline(_value(parent, metric), color="#999", linewidth=0.8, linestyle=":")
        rest = f", best of {', '.join(keys[2:])}" if len(keys) > 2 else ""
        axes.set(xlabel=f"{keys[0]}{rest} (dotted: parents)", xscale="log" if log else "linear")
        if ticks is not None:
            axes.set_xticks(places, ticks)
            axes.minorticks_off()

    _picture(file, [*rows, *found["parents"]], draw, legend=len(curves) if len(keys) > 1 else 0)


def _places(values: Sequence[Any]) -> tuple[list[float], list[str] | None, bool]:
    """Where the values of a key stand: numbers where they are (on a log scale over two decades), else side by side."""
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values):
        numbers = [float(v) for v in values]
        log = min(numbers) > 0 and max(numbers) >= 100 * min(numbers)
        return numbers, [f"{v:g}" for v in numbers] if len(numbers) <= _FEW_TICKS else None, log
    return [float(i) for i in range(len(values))], [str(v) for v in values], False


def _value(row: Row, metric: str) -> float:
    value = row.get(metric)
    return math.nan if value is None else 100 * float(value) if metric == "accuracy" else float(value)


def _picture(file: Path, rows: Sequence[Row], draw: Callable[[Any, str], None], *, legend: int) -> None:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    metrics = [metric for metric in _METRICS if any(row.get(metric) is not None for row in rows)] or ["loss"]
    drawing = Figure(figsize=(5.2 * len(metrics), 4.0), layout="constrained")
    FigureCanvasSVG(drawing)
    for axes, metric in zip(drawing.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        draw(axes, metric)
        numbers = not any(key in row for row in rows for key in ("accuracy", "perplexity"))
        axes.set(ylabel="squared error" if numbers else _METRICS[metric])
        axes.spines[["top", "right"]].set_visible(False)
    if legend:
        handles, labels = drawing.axes[0].get_legend_handles_labels()
        drawing.legend(handles, labels, frameon=False, loc="outside upper center", ncols=min(legend, 4), fontsize=8)
    with mpl.rc_context({"svg.hashsalt": "otfuse"}):  # the same figures, the same file
        drawing.savefig(file, format="svg", metadata={"Date": None})
