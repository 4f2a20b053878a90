"""Candidates beside controls in several settings, three seeds each, on held-out data.

    python experiments/compare/run.py SETTING... [--seeds 0 1 2] [--rows NAME...] [--out DIR]    # settings: settings.py

Every finished row is added to DIR/SETTING.json at once, and a row that is there is not made again. DIR/results.md is the table:
mean and standard deviation over seeds. Seconds are processor time of one thread, passes how many examples went forward through a model,
tracing and trials of rates included (for a step of training a backward pass comes with it).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "know"), str(HERE.parents[1] / "benchmarks")]
import job  # noqa: E402
import settings  # noqa: E402
from rows import LONGER, Made, Setting, rows  # noqa: E402

from otfuse.train.finetune import finetune  # noqa: E402
from otfuse.train.options import FinetuneOptions  # noqa: E402

FINETUNED = FinetuneOptions(steps=100, batch_size=32, learning_rate=5e-4, weight_decay=0.01, device="cpu")
"""The same for every row; chosen once on the parents' own training images."""


def scored(model: Any, setting: Setting) -> dict[str, float]:
    """Loss and accuracy on test data, and again after finetuning with few labels."""
    found = setting.scored([model])
    if setting.few is not None:
        tuned = setting.scored([finetune(model, setting.few, options=FINETUNED).model])
        found |= {f"tuned {name}": value for name, value in tuned.items()}
    return found


def measured(name: str, seed: int, wanted: list[str], kept: dict[str, Any], where: Path) -> None:
    """All rows of one setting and seed that are not there yet."""
    setting = settings.SETTINGS[name](seed)
    done = kept.setdefault(str(seed), {})
    for i, parent in enumerate(setting.parents):
        if f"parent {i + 1}" not in done:
            done[f"parent {i + 1}"] = scored(parent, setting)
    if "ensemble" not in done:
        done["ensemble"] = setting.scored(setting.parents)
    for row, make in rows(setting).items():
        if row in done or (wanted and not any(f"{row}#".startswith(w) for w in wanted)):
            continue
        try:
            made: Made = make()
            about = {"seconds": made.seconds, "passes": made.passes, "told": made.told, "judged": dict(made.judged)}
            done[row] = scored(made.model, setting) | about
        except Exception as error:  # noqa: BLE001  # a row that cannot be made is a row that says why
            done[row] = {"failed": f"{type(error).__name__}: {error}"}
        print(f"{name} seed {seed}: {row}: {done[row]}", file=sys.stderr, flush=True)
        where.write_text(json.dumps(kept, indent=1) + "\n")


def table(kept: dict[str, Any]) -> list[str]:
    """Lines of Markdown: mean and standard deviation over the seeds that a row has."""
    names = list(dict.fromkeys(row for own in kept.values() for row in own))
    columns = ["accuracy", "loss", "seconds", "passes", "tuned accuracy", "tuned loss"]
    used = [c for c in columns if any(c in row for own in kept.values() for row in own.values())]
    lines = [f"| | {' | '.join(used)} | seeds |", f"|---|{'---:|' * len(used)}---:|"]
    for name in names:
        found = [own[name] for own in kept.values() if name in own and "failed" not in own[name]]
        if not found:
            why = next(own[name]["failed"] for own in kept.values() if name in own)
            lines.append(f"| {name} | {why[:120]} |{' |' * len(used)}")
            continue
        cells = [shown([row[c] for row in found if c in row], c) for c in used]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(found)} |")
    return lines


STATES = {"as it is": "", "distilled alike": ", distilled", "at least as long as auto": ", distilled {} as long"}
"""What a parent may be compared as, and how its row's name ends (the number of parents says how much longer)."""
CHOICES = {"on test data": lambda row: row["loss"], "without labels": lambda row: row["judged"]["distilled"]}
"""By what the better parent is chosen: the first no user can know, the second is the command's own guard on held-back inputs."""
CONTROLS = [(choice, state) for choice in CHOICES for state in STATES if choice == "on test data" or STATES[state]]


def against(every: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of Markdown: loss of ``auto`` less that of the better parent, seed by seed."""
    titles = [f"{state}, chosen {choice}" for choice, state in CONTROLS]
    lines = [f"| `auto` less the better parent | {' | '.join(titles)} | seconds of both |", f"|---|{'---:|' * 6}"]
    total: dict[tuple[str, str], list[float]] = {what: [] for what in CONTROLS}
    for name, kept in every.items():
        count = sum(row.startswith("parent ") and "," not in row for row in next(iter(kept.values())))
        cells, seconds = [], [statistics.fmean(own["auto"]["seconds"] for own in kept.values())]
        for choice, state in CONTROLS:
            ends = STATES[state].format(LONGER[count][0])
            found = [
                [own[f"parent {i + 1}{ends}"] for i in range(count) if f"parent {i + 1}{ends}" in own]
                for own in kept.values()
            ]
            if not all(found):
                cells.append("")
                continue
            best = [min(rows, key=CHOICES[choice]) for rows in found]
            gaps = [own["auto"]["loss"] - row["loss"] for own, row in zip(kept.values(), best, strict=True)]
            cells.append(shown(gaps, "loss"))
            total[choice, state].append(statistics.fmean(gaps))
            if (choice, state) == CONTROLS[2]:
                seconds.append(statistics.fmean(row["seconds"] for row in best))
        lines.append(f"| {name} | {' | '.join(cells)} | {', '.join(f'{s:.0f}' for s in seconds)} |")
    means = [f"{statistics.fmean(found):.3f} ({len(found)})" for found in total.values()]
    return [*lines, f"| mean (of so many settings) | {' | '.join(means)} | |"]


def shown(values: list[float], column: str) -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    digits = 3 if "loss" in column else 0 if column == "passes" else 1
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", choices=sorted(settings.SETTINGS), default=sorted(settings.SETTINGS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", nargs="*", default=[], help="only rows whose names begin so (a # ends a name)")
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.settings:
        where = given.out / f"{name}.json"
        kept = json.loads(where.read_text()) if where.exists() else {}
        for seed in given.seeds:
            began = time.perf_counter()
            measured(name, seed, given.rows, kept, where)
            where.write_text(json.dumps(kept, indent=1) + "\n")
            print(f"{name} seed {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    write(given.out)


def write(out: Path) -> None:
    """results.md of all settings that were measured."""
    text = ["# Fused models beside controls", ""]
    text += [
        "Made by `python experiments/compare/run.py`; mean and standard deviation over the seeds that a row has been measured with (of 0, 1, 2).",
        "",
    ]
    text += [f"Machine: {', '.join(f'{k} {v}' for k, v in job.machine().items())}; one thread.", ""]
    every = {w.stem: json.loads(w.read_text()) for w in sorted(out.glob("*.json")) if w.stem in settings.SETTINGS}
    text += [*against({n: kept for n, kept in every.items() if all("auto" in own for own in kept.values())}), ""]
    for name, kept in every.items():
        text += [f"## {name}", "", (settings.SETTINGS[name].__doc__ or "").strip(), "", *table(kept), ""]
    (out / "results.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
