"""At which learning rate a fused model should be finetuned on few labels, beside a parent that was distilled.

    python experiments/questions/finetuning.py [SETTING ...] [--seeds 0 1 2] [--out FILE.json]

Models of experiments/compare, each finetuned on the setting's 100 labels for the same 100 steps of 32, at several rates; accuracy and loss are
of test data. Kept row by row in FILE.json; prints mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "compare"), str(HERE.parent / "know"), str(HERE.parents[1] / "benchmarks")]
import settings  # noqa: E402
from rows import LONGER, Setting, rows  # noqa: E402
from run import FINETUNED  # noqa: E402

from otfuse.train.finetune import finetune  # noqa: E402

RATES = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3)


def finetuned(model: Any, setting: Setting) -> dict[str, dict[str, float]]:
    """Scores as it is and after finetuning, by rate."""
    assert setting.few is not None
    found = {"as it is": setting.scored([model])}
    for rate in RATES:
        options = FINETUNED.model_copy(update={"learning_rate": rate})
        found[f"{rate:g}"] = setting.scored([finetune(model, setting.few, options=options).model])
    return found


def table(name: str, kept: dict[str, Any]) -> list[str]:
    """Rows by rate: accuracy in percent and loss in nats."""
    titles = ["as it is", *(f"{rate:g}" for rate in RATES)]
    lines = [f"| {name} | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    for row in next(iter(kept.values())):
        cells = []
        for title in titles:
            found = [own[row][title] for own in kept.values() if row in own]
            spread = f" ± {statistics.stdev(f['accuracy'] for f in found):.1f}" if len(found) > 1 else ""
            cells.append(
                f"{statistics.fmean(f['accuracy'] for f in found):.1f}{spread} ({statistics.fmean(f['loss'] for f in found):.3f})"
            )
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=["know-2", "know-5"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=HERE / "finetuning.json")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    kept = json.loads(given.out.read_text()) if given.out.exists() else {}
    for name in given.settings:
        for seed in given.seeds:
            setting = settings.SETTINGS[name](seed)
            longer = f"parent 1, distilled {LONGER[len(setting.parents)][0]} as long"
            done = kept.setdefault(name, {}).setdefault(str(seed), {})
            for row in ("parent 1", "calibrated (plain)", "auto", "parent 1, distilled", longer):
                if row not in done:
                    model = setting.parents[0] if row == "parent 1" else rows(setting)[row]().model
                    done[row] = finetuned(model, setting)
                    given.out.write_text(json.dumps(kept, indent=1) + "\n")
        print("\n".join(table(name, kept[name])))


if __name__ == "__main__":
    main()
