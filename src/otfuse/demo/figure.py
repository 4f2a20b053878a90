"""The demo's figure: for every pair of parents the accuracy of each method, the ensemble's as a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    Rows = Sequence[Mapping[str, Any]]

COLOURS = {"parent": "#8a949e", "fused": "#1f5f99", "control": "#d98c3f"}
_LEGEND = {"parent": "parents", "fused": "fused", "control": "controls, distilled alike"}
_SHORT = 12  # percent: the figure of a bar shorter than this stands beside it


def figure(pairs: Mapping[str, Rows], path: Path) -> None:
    """Bars of accuracy (shares of one) to ``path``, one panel per pair; its suffix says the format.

    ``pairs``: by title the rows, ``{"method", "kind", "one_shot", "finetuned"}``, with kind parent, fused, control or ensemble.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    tallest = max(len(rows) for rows in pairs.values())
    drawing = Figure(figsize=(5.6 * len(pairs), 0.34 * tallest + 1.5), layout="constrained")
    FigureCanvasAgg(drawing)
    for axes, (title, rows) in zip(drawing.subplots(1, len(pairs), squeeze=False)[0], pairs.items(), strict=True):
        _panel(axes, title, rows)
    keys: list[Any] = [Patch(color=colour, label=_LEGEND[kind]) for kind, colour in COLOURS.items()]
    keys.append(Line2D([], [], color="black", linestyle="--", linewidth=1, label="ensemble"))
    keys.append(
        Line2D([], [], color="black", marker="D", markerfacecolor="white", linestyle="", label="after finetuning")
    )
    drawing.legend(handles=keys, frameon=False, loc="outside lower center", ncols=len(keys), fontsize=9)
    drawing.savefig(path, dpi=150)


def _panel(axes: Any, title: str, rows: Rows) -> None:
    bars = [row for row in rows if row["kind"] != "ensemble"]
    shares, places = [100 * row["one_shot"] for row in bars], range(len(bars))
    axes.barh(places, shares, 0.72, color=[COLOURS[row["kind"]] for row in bars])
    for place, share in zip(places, shares, strict=True):
        inside = share >= _SHORT
        where, colour = (1.5, "white") if inside else (share + 1, "black")
        axes.text(where, place, f"{share:.1f}", color=colour, va="center", fontsize=8)
    tuned = [100 * row["finetuned"] for row in bars]
    axes.plot(tuned, places, "D", color="black", markerfacecolor="white", markersize=5, clip_on=False)
    for row in rows:
        if row["kind"] == "ensemble":
            whole = 100 * row["one_shot"]
            axes.axvline(whole, color="black", linestyle="--", linewidth=1)
            axes.text(whole - 1, -0.6, f"ensemble {whole:.1f}", ha="right", va="bottom", fontsize=8)
    axes.set_yticks(places, [str(row["method"]) for row in bars], fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="accuracy on held-out images, %")
    axes.set_title(f"Parents: {title}", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
