"""How much each tensor counts in `aligned`: `evenness` from 0 (every number alike) to 1 (every tensor alike), one shot, no inputs.

    python experiments/aligned/evenness.py [SETTING ...] [--seeds 0 1 2] [--out FILE.json]

Every pair of neighbours among the parents of the settings of experiments/compare is fused; the loss is on held-out data. Kept row by row
in FILE.json; prints the table of means over pairs, and in how many pairs each value is the best.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from statistics import fmean

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "compare"), str(HERE.parent / "know")]
import settings  # noqa: E402
from rows import Setting  # noqa: E402

import otfuse  # noqa: E402

DIGITS = ["know-2", "know-5", "same-2-weak", "same-2-well"]
TEXTS = ["text-gpt", "text-llama", "two-texts-gpt", "two-texts-llama"]
VALUES = (0.0, 0.25, 0.5, 0.75)


def losses(setting: Setting, first: int) -> dict[str, float]:
    """Loss of two neighbours fused, by evenness."""
    pair = setting.parents[first : first + 2]
    found = {"plain": otfuse.fuse(pair, "vanilla", verify=False).model}
    for value in VALUES:
        found[str(value)] = otfuse.fuse(pair, "aligned", options={"aligned.evenness": value}, verify=False).model
    return {name: setting.scored([model])["loss"] for name, model in found.items()}


def table(kept: dict[str, dict[str, float]]) -> list[str]:
    """Means over the pairs of a setting, and how often each value is the best."""
    lines = [f"| | pairs | plain average | {' | '.join(map(str, VALUES))} |", f"|---|---:|---:|{'---:|' * len(VALUES)}"]
    for name in dict.fromkeys(key.split()[0] for key in kept):
        rows = [row for key, row in kept.items() if key.split()[0] == name]
        best = [min(map(str, VALUES), key=row.__getitem__) for row in rows]
        cells = [f"{fmean(row[str(v)] for row in rows):.3f} ({best.count(str(v))})" for v in VALUES]
        lines.append(f"| {name} | {len(rows)} | {fmean(row['plain'] for row in rows):.3f} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=[*DIGITS, *TEXTS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=HERE / "evenness.json")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    kept = json.loads(given.out.read_text()) if given.out.exists() else {}
    for name in given.settings:
        for seed in given.seeds:
            setting = settings.SETTINGS[name](seed)
            for first in range(len(setting.parents) - 1):
                key = f"{name} {seed} {first}"
                if key not in kept:
                    kept[key] = losses(setting, first)
                    print(key, kept[key], file=sys.stderr, flush=True)
                    given.out.write_text(json.dumps(kept, indent=1) + "\n")
    print("\n".join(table(kept)))


if __name__ == "__main__":
    main()
