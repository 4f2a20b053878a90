"""What the demo says: its tables in markdown, and sentences about them, each computed from the rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from otfuse.demo.images import HELD_OUT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Row = dict[str, Any]

DEFAULT = "auto"  # of the fused models the one that sentences are about: a user's, chosen before any figure was seen
PUBLISHED = "otfusion"  # begins the names of the recipes of arXiv 2310.05719
HEADER = "| | one-shot, % | loss | seconds | finetuned, % | loss |\n|---|---:|---:|---:|---:|---:|"


def table(rows: Sequence[Row]) -> str:
    """The rows in markdown; what was not fused has no seconds."""
    lines = [HEADER]
    for row in rows:
        cells = (
            percent(row["one_shot"]), f"{row['one_shot_loss']:.3f}", f"{row['seconds']:.1f}" if "seconds" in row else "",
            percent(row["finetuned"]), f"{row['finetuned_loss']:.3f}",
        )  # fmt: skip
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def remarks(rows: Sequence[Row], probe: int) -> list[str]:
    """What the rows of one pair of parents say, for fusing or against it; ``probe`` counts the unlabelled inputs."""
    fused, ensemble = _named(rows, DEFAULT), next(row for row in rows if row["kind"] == "ensemble")
    rivals = [row for row in rows if row["kind"] in ("parent", "control")]
    said = [
        f"One-shot, {DEFAULT} gets {percent(fused['one_shot'])} % right (standard error {100 * _error(fused):.1f}): "
        + _beside(fused, rivals, "one_shot", "better than", "not better than", percent),
        f"Its loss is {fused['one_shot_loss']:.3f}: "
        + _beside(fused, rivals, "one_shot_loss", "lower than", "not lower than", "{:.3f}".format),
        _against_ensemble(fused, ensemble),
        f"Finetuned, it gets {percent(fused['finetuned'])} % right: "
        + _beside(fused, rivals, "finetuned", "better than", "not better than", percent),
        _published(rows),
        _advice(fused, rivals),
    ]
    chosen = [f"{row['regulariser']:g} for {row['method']}" for row in rows if "regulariser" in row]
    if chosen:
        said.append(
            f"Regulariser: {', '.join(chosen)}; of several, the one whose result departs least from the parents' mean "
            f"prediction on {probe} training images without their labels."
        )
    return said


def percent(share: float) -> str:
    """A share of one as a number of percent."""
    return f"{100 * share:.1f}"


def joined(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _named(rows: Sequence[Row], method: str) -> Row:
    return next(row for row in rows if row["method"] == method)


def _error(row: Row) -> float:
    """Standard error of an accuracy on the held-out images."""
    return math.sqrt(row["one_shot"] * (1 - row["one_shot"]) / HELD_OUT)


def _beside(fused: Row, rivals: Sequence[Row], key: str, yes: str, no: str, shown: Callable[[float], str]) -> str:
    """Which rivals the fused model is better than, and which not, with their figures."""
    sign = -1 if key.endswith("loss") else 1
    better = [sign * (fused[key] - row[key]) > 0 for row in rivals]
    told = []
    for word, wanted in ((yes, True), (no, False)):
        named = [
            f"{row['method']} ({shown(row[key])})" for row, is_so in zip(rivals, better, strict=True) if is_so is wanted
        ]
        if named:
            told.append(f"{word} {joined(named)}")
    return "; ".join(told) + "."


def _against_ensemble(fused: Row, ensemble: Row) -> str:
    reached = fused["one_shot"] >= ensemble["one_shot"]
    verb = "reaches" if reached else "does not reach"
    return f"It {verb} the accuracy of the ensemble ({percent(ensemble['one_shot'])} %), which costs as many models as there are parents."


def _published(rows: Sequence[Row]) -> str:
    best = max((row for row in rows if row["method"].startswith(PUBLISHED)), key=lambda row: float(row["one_shot"]))
    parents = sorted(float(row["one_shot"]) for row in rows if row["kind"] == "parent")
    where = (
        f"below the weaker parent ({percent(parents[0])} %)" if best["one_shot"] < parents[0]
        else f"not below the better parent ({percent(parents[-1])} %)" if best["one_shot"] >= parents[-1]
        else f"between the parents ({percent(parents[0])} and {percent(parents[-1])} %)"
    )  # fmt: skip
    return (
        f"The published method at its best ({best['method']}) gets {percent(best['one_shot'])} % right one-shot, {where}, "
        f"and {percent(best['finetuned'])} % finetuned."
    )


def _advice(fused: Row, rivals: Sequence[Row]) -> str:
    """What a user should do with parents like these; by accuracy, one-shot."""
    best = max(rivals, key=lambda row: (row["one_shot"], -row["one_shot_loss"]))
    parent = max((row for row in rivals if row["kind"] == "parent"), key=lambda row: float(row["one_shot"]))
    gap = fused["one_shot"] - best["one_shot"]
    if parent["one_shot"] >= fused["one_shot"]:
        said = f"With parents like these keep the better parent ({parent['method']}): fusing makes nothing that gets more right"
    elif gap <= 0:
        said = f"With parents like these fusing beats both parents, but the control {best['method']} does as well or better"
    else:
        said = f"With parents like these fusing pays: {DEFAULT} gets more right than both parents and every control"
    small = abs(gap) < _error(fused)
    return said + (f" (against {best['method']} the difference is less than one standard error)." if small else ".")
