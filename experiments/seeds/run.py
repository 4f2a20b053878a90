"""The demo's table over three pairs of parents: mean and spread, because one pair says little and depends on the machine.

    python experiments/seeds/run.py [FOLDER]

trains six parents (seeds 1 to 6), fuses each pair as ``otfuse demo`` does, and writes results.json and results.md beside
this file. FOLDER (default: demo-seeds) keeps parents and results, so that a run that was cut off goes on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from otfuse.demo.run import machine, run

HERE = Path(__file__).parent
PAIRS = ((1, 2), (3, 4), (5, 6))
COLUMNS = (("one_shot", 100.0), ("one_shot_loss", 1.0), ("finetuned", 100.0), ("finetuned_loss", 1.0))


def main(folder: Path) -> None:
    found = [run(folder / f"{a}-{b}", _tell, seeds={"parent-a": a, "parent-b": b})["rows"] for a, b in PAIRS]
    rows = {row["method"]: [_row(rows, row["method"]) for rows in found] for row in found[0]}
    results = {"pairs": PAIRS, "machine": machine(), "rows": rows}
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    text = table(rows)
    (HERE / "results.md").write_text(text, encoding="utf-8")
    print(text)


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Mean and standard deviation over the pairs, in Markdown."""
    lines = ["| | one-shot, % | loss | finetuned, % | loss |", "|---|---:|---:|---:|---:|"]
    for method, own in rows.items():
        cells = [_cell([row[key] * scale for row in own], 1 if scale > 1 else 3) for key, scale in COLUMNS]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    told = (
        f"\nMean and standard deviation over {len(PAIRS)} pairs of parents (seeds {', '.join(f'{a} and {b}' for a, b in PAIRS)}), "
        f"500 held-out images; machine: {', '.join(f'{k} {v}' for k, v in machine().items())}. Made by `python experiments/seeds/run.py`.\n"
    )
    return "\n".join(lines) + "\n" + told


def _row(rows: list[dict[str, Any]], method: str) -> dict[str, Any]:
    return next(row for row in rows if row["method"] == method)


def _cell(values: list[float], digits: int) -> str:
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def _tell(stage: str, done: int, total: int) -> None:
    if done in (0, total):
        print(f"{stage}: {done} of {total}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-seeds"))
