"""The demo's tables over three pairs of parents each: mean and spread, because one pair says little and depends on the machine.

    python experiments/seeds/run.py [FOLDER]

trains twelve parents (seeds 1 to 6, each once of half of the digits and once of all), fuses each pair as ``otfuse demo`` does,
and writes results.json and results.md beside this file. FOLDER (default: demo-seeds) keeps parents and results, so that a run
that was cut off goes on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from otfuse.demo.images import HELD_OUT
from otfuse.demo.run import PAIRS, Settings, machine, run
from otfuse.demo.words import HEADER

HERE = Path(__file__).parent
SEEDS = ((1, 2), (3, 4), (5, 6))
COLUMNS = (("one_shot", 100), ("one_shot_loss", 1), ("seconds", 1), ("finetuned", 100), ("finetuned_loss", 1))
DIGITS = {"one_shot": 1, "seconds": 1, "finetuned": 1}  # behind the point; of losses three


def main(folder: Path) -> None:
    found = [run(folder / f"{a}-{b}", _tell, seeds=(a, b))["rows"] for a, b in SEEDS]
    rows = {pair: _by_method([[row for row in one if row["pair"] == pair] for one in found]) for pair in PAIRS}
    results = {"seeds": SEEDS, "machine": machine(), "rows": rows}
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    text = "\n".join([*(f"## Parents: {pair}\n\n{table(own)}" for pair, own in rows.items()), _told()])
    (HERE / "results.md").write_text(text, encoding="utf-8")
    print(text)


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Mean and standard deviation over the seeds, in Markdown."""
    lines = [HEADER]
    for method, own in rows.items():
        cells = [_cell([row[key] * scale for row in own if key in row], DIGITS.get(key, 3)) for key, scale in COLUMNS]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _by_method(found: list[list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    return {rows[0]["method"]: list(rows) for rows in zip(*found, strict=True)}


def _told() -> str:
    used = Settings()
    return (
        f"Mean and standard deviation over {len(SEEDS)} pairs of parents each (seeds {', '.join(f'{a} and {b}' for a, b in SEEDS)}), "
        f"{HELD_OUT} held-out images; {used.probe} training images without labels; {used.steps} steps of auto and of distilling; "
        f"finetuned: {used.finetune.steps} steps on {used.labels} labelled images; seconds: processor time, one thread. "
        f"Machine: {', '.join(f'{k} {v}' for k, v in machine().items())}. Made by `python experiments/seeds/run.py`.\n"
    )


def _cell(values: list[float], digits: int) -> str:
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}" if values else ""


def _tell(stage: str, done: int, total: int) -> None:
    if done in (0, total):
        print(f"{stage}: {done} of {total}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-seeds"))
