"""Which learning rate the trials of `distilled.learning_rate: auto` should choose: every rate's trial, and its whole run.

    python experiments/questions/rates.py [SETTING ...] [--seeds 0] [--out FILE.json]

From what `auto` would train and from the first parent (settings of experiments/compare), each rate is tried for a fifth of 200 steps, as the product
does, and then run to its end. Kept row by row in FILE.json; prints, rule by rule, how far the chosen rate's run ends above that of the
best rate: divergence on held-back inputs in percent, loss on test data in nats.
"""

# ruff: noqa: SLF001  # looks into the product's own trials
from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "compare"), str(HERE.parent / "know")]
import settings  # noqa: E402
from rows import Setting, distilled, fused  # noqa: E402

from otfuse.program.state import copied  # noqa: E402
from otfuse.stages import works  # noqa: E402
from otfuse.train import distil as training  # noqa: E402
from otfuse.train.worker import Worker, start  # noqa: E402

DIGITS = ["know-2", "know-5", "same-2-weak", "same-2-well", "same-2-unseen"]
TEXTS = ["text-gpt", "text-llama", "two-texts-gpt", "two-texts-llama"]
RATES = [10 ** (exponent / 2) for exponent in range(-11, -3)]  # 3.2e-6 to 1e-2
HOPELESS = 3.0  # times the divergence before: such trials are not run to their end


class Measured(Exception):  # noqa: N818  # no error: what was asked for is known, and the fusion need not go on
    """All rates of one start."""


def every_rate(setting: Setting, begin: str) -> dict[str, Any]:
    """Divergence before; by rate the divergence after its trial and after its whole run, and the loss on test data then."""

    def measure(model: Any, weights: Any, lesson: Any, learned: Any, held: Any, course: Any, **more: Any) -> Any:
        options = course.options(1, course.rates[0])
        begun = training._begun(copied(model, more["caches"]), weights)
        worker = Worker(begun, lesson, options, start(options), own=True, training=False, betas=training._BETAS)
        own, steps = training._Training(worker, weights, lesson, learned, held, course), course.steps
        before, found = own.judged(), {}
        for rate in RATES:
            trial = own.trial(rate, training._trial_steps(steps))
            found[f"{rate:.1e}"] = [trial]
            if trial < HOPELESS * before:
                at = {"step": 0, "steps": steps, "before": before, "best_step": 0, "best_figure": before, "best": {}}
                at |= {"rates": [], "figures": [], "rate": rate, "every": training._every(steps)}
                made = own.trained(at, None, {}, None)
                worker.begin_anew(weights)
                ended = training._begun(copied(model, more["caches"]), made.weights)
                found[f"{rate:.1e}"] += [made.after, setting.scored([ended])["loss"]]
        raise Measured({"before": before, "rates": found})

    given, works.distil = works.distil, measure
    try:
        if begin == "auto":
            fused(setting, "auto", {"auto.steps": setting.steps, "distilled.batch_size": setting.batch})
        else:
            distilled(setting, "anchor")
    except Measured as all_of_it:
        found: dict[str, Any] = all_of_it.args[0]
        return found
    finally:
        works.distil = given
    raise RuntimeError(f"nothing was distilled from {begin}")


def gains(tried: dict[float, float], before: float) -> float:
    """The rule until 2026-11-30: the largest that gains a quarter of what the best gains; the best where none gains."""
    best = min(tried.values())
    enough = [rate for rate, trial in tried.items() if before - trial >= (before - best) / 4]
    return max(enough) if best < before else min(tried, key=tried.__getitem__)


def table(kept: dict[str, Any]) -> list[str]:
    """Rules by what they cost."""
    within = [(f"the largest within {share:.0%} of the best trial", share) for share in (0.0, 0.1, 0.25, 0.5, 1.0)]
    rules: list[tuple[str, Any]] = [("the largest that gains a quarter of the best", gains)]
    for name, share in within:
        rules.append((name, lambda t, _, s=share: max(r for r, d in t.items() if d <= (1 + s) * min(t.values()))))
    lines = [
        f"| rule, {len(kept)} starts | divergence above the best rate's, % | at most | test loss above the least |",
        "|---|---:|---:|---:|",
    ]
    for name, rule in rules:
        above, loss = [], []
        for own in kept.values():
            ends = {float(rate): found for rate, found in own["rates"].items()}
            whole = [found[1:] for found in ends.values() if len(found) > 1]
            chosen = ends[rule({rate: found[0] for rate, found in ends.items()}, own["before"])][1:]
            above.append(100 * (chosen[0] / min(divergence for divergence, _ in whole) - 1))
            loss.append(chosen[1] - min(test for _, test in whole))
        lines.append(f"| {name} | {fmean(above):.1f} | {max(above):.0f} | {fmean(loss):.4f} |")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=[*DIGITS, *TEXTS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=HERE / "rates.json")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    kept = json.loads(given.out.read_text()) if given.out.exists() else {}
    for name in given.settings:
        for seed in given.seeds:
            for begin in ("auto", "parent"):
                if (key := f"{name} {seed} {begin}") not in kept:
                    kept[key] = every_rate(settings.SETTINGS[name](seed), begin)
                    given.out.write_text(json.dumps(kept, indent=1) + "\n")
                    print(key, kept[key], file=sys.stderr, flush=True)
    print("\n".join(table(kept)))


if __name__ == "__main__":
    main()
