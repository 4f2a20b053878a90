"""Fuses the pairs that train.py made with every recipe; perplexity of parents, ensemble and results on held-out text.

    python experiments/text/run.py MODELS [--only bert gpt ...] [--out experiments/text/results.md]

Each result is written as a checkpoint to a temporary folder and read back, as a user would.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import job
import torch

AUTO = {"otfusion.regulariser": "auto"}
FAMILIES = ("gpt", "bert", "llama", "t5")


def rows_of(models: Path, name: str, progress: Any) -> list[dict[str, Any]]:
    """One row per method: loss in nats per token and perplexity, and for results the seconds and the gate's error."""
    from otfuse import pipeline
    from otfuse.commands.evaluate import evaluate_checkpoints
    from otfuse.core import recipe as recipes

    anchor, source, data, probe = (
        str(models / part) for part in (f"{name}-a", f"{name}-b", f"valid-{name}.npz", f"probe-{name}.npz")
    )
    rows = [
        {**row, "model": Path(row["model"]).name} for row in evaluate_checkpoints([anchor, source], data, ensemble=True)
    ]
    jobs: list[tuple[str, dict[str, Any]]] = [(recipe, {}) for recipe in reversed(recipes.names())]
    jobs += [("otfusion-acts", AUTO), ("otfusion-wts", AUTO)]
    for recipe, options in jobs:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "fused"
            chosen = recipes.read(recipe, options)
            result = pipeline.fuse_checkpoints(anchor, [source], out, recipe=chosen, data=probe, progress=progress)
            seconds = time.perf_counter() - began
            score = evaluate_checkpoints([str(out)], data)[0]
        assert result.report is not None
        used = result.report.recipe.otfusion.regulariser
        label = f"{recipe}, regulariser auto: {used:g}" if options else recipe
        figures = {"seconds": round(seconds, 1), "gate": result.report.gate or {}, "notes": list(result.report.notes)}
        rows.append({**score, "model": label, "options": options and {"regulariser": used}, **figures})
        print(name, rows[-1], file=sys.stderr, flush=True)
    return rows


def table(name: str, rows: list[dict[str, Any]]) -> str:
    """The rows of one family in markdown."""
    lines = [f"## {name}", "", "| | loss, nats | perplexity | seconds to fuse |", "|---|---:|---:|---:|"]
    lines += [f"| {r['model']} | {r['loss']:.3f} | {r['perplexity']:.1f} | {r.get('seconds', '')} |" for r in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--only", nargs="*", default=FAMILIES)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {"machine": job.machine(), "families": {}}
    parts = []
    for name in given.only:
        rows = rows_of(given.models, name, None)
        training = {
            letter: json.loads((given.models / f"{name}-{letter}" / "training.json").read_text()) for letter in "ab"
        }
        record["families"][name] = {"rows": rows, "training": training}
        parts.append(table(name, rows))
    machine = ", ".join(f"{key} {value}" for key, value in record["machine"].items())
    head = [
        "# Small language models on tinyshakespeare, two seeds each", "",
        "Parents: `python experiments/text/train.py TEXT MODELS`, TEXT being tinyshakespeare; this table: `python experiments/text/run.py MODELS`.",
        "Parents are trained with seeds 100/200 (a) and 101/201 (b) for weights/order; the masks of a masked model come from seed 0.",
        f"Machine: {machine}; one thread, other jobs beside it, so seconds are rough. Recipes run with seed 0.",
        "`auto` keeps the regulariser whose result departs least from the parents' mean prediction on training windows, unlabelled.", "",
    ]  # fmt: skip
    given.out.write_text("\n".join(head) + "\n" + "\n".join(parts))
    given.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(parts))


if __name__ == "__main__":
    main()
