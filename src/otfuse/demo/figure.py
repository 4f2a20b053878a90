"""The demo's figure: accuracy of every method, one-shot and after finetuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_COLOURS = {"one_shot": "#8fb8de", "finetuned": "#1f5f99"}
_LABELS = {"one_shot": "one-shot", "finetuned": "finetuned"}


def figure(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Bars of accuracy (shares of one) to ``path``; its suffix says the format.

    ``rows``: ``{"method", "one_shot", "finetuned"}``, either number None or absent where there is none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(8, 0.55 * len(rows) + 1.4), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots()
    height = 0.38
    for offset, key in ((-height / 2, "one_shot"), (height / 2, "finetuned")):
        places = [(i + offset, 100 * row[key]) for i, row in enumerate(rows) if row.get(key) is not None]
        bars = axes.barh(
            [p for p, _ in places], [v for _, v in places], height, color=_COLOURS[key], label=_LABELS[key]
        )
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), [str(row["method"]) for row in rows])
    axes.invert_yaxis()
    axes.set(xlim=(0, 108), xlabel="accuracy on held-out images, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    drawing.savefig(path, dpi=150)
