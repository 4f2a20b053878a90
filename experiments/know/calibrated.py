"""Parents that know different things, calibrated from the plain average: accuracy on held-out digits, processor seconds.

    python experiments/know/calibrated.py [--k 2] [--seeds 0 1 2] [--inputs 1297 32] [--set calibrated.ridge=0.001] [--out FILE]

Inputs are unlabelled training images. Seconds are those of one thread for everything that calibrating does, tries of ridges
and reading parents included; tracing the model, which every scheme but the average does, is told apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from copy import deepcopy
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from parents import digits, parents

from otfuse.calibrate.run import calibrate
from otfuse.core import recipe as recipes
from otfuse.evaluate.metrics import evaluate, evaluate_ensemble
from otfuse.fusion.sides import sides
from otfuse.io.parents import Family
from otfuse.measure.probe import first_batch

if TYPE_CHECKING:
    from torch import nn

    from otfuse.core.options import Calibrated

BATCH = 128


def row(name: str, seed: int, models: list[nn.Module], data: Any, **more: Any) -> dict[str, Any]:
    held_out = data.held_out
    found = evaluate(models[0], held_out) if len(models) == 1 else evaluate_ensemble(models, held_out)
    print({"method": name, "seed": seed, "accuracy": found.accuracy, "loss": found.loss, **more}, file=sys.stderr)
    return {"method": name, "seed": seed, "accuracy": found.accuracy, "loss": found.loss, **more}


def with_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    copy = deepcopy(model)
    copy.load_state_dict(copy.state_dict() | weights)
    return copy


def one_seed(k: int, seed: int, inputs: list[int], options: Calibrated) -> list[dict[str, Any]]:
    models, data = parents(k, seed), digits(seed)
    rows = [row(f"parent {i + 1}", seed, [model], data) for i, model in enumerate(models)]
    rows.append(row("ensemble", seed, models, data))
    for count in inputs:
        given = data.inputs.take(slice(0, count))
        began = time.process_time()
        with Family(models) as family:
            found = sides(family.parents, first_batch(models[0], given, BATCH), lambda _: frozenset())
            traced, began = time.process_time() - began, time.process_time()
            start = {name: sum(side.weights[name] for side in found) / k for name in family.parents[0].weights.alike}
            made = calibrate(found, start, given, options, [1 / k] * k)
        seconds = time.process_time() - began
        if count == inputs[0]:
            rows.append(row("plain average", seed, [with_weights(models[0], start)], data))
        fused = with_weights(models[0], made.weights)
        more = {"ridge": made.figures["ridge"], "seconds": seconds, "trace": traced}
        rows.append(row(f"calibrated, {count} inputs", seed, [fused], data, **more))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| | accuracy, % | loss | seconds | trace | ridge |", "|---|---:|---:|---:|---:|---|"]
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        cells = [_spread([100 * row["accuracy"] for row in own], 1), _spread([row["loss"] for row in own], 3)]
        timed = "seconds" in own[0]
        cells += [_spread([row[key] for row in own], 1) if timed else "" for key in ("seconds", "trace")]
        cells.append(", ".join(f"{row['ridge']:g}" for row in own) if timed else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float], digits_: int) -> str:
    return f"{mean(values):.{digits_}f}" + (f" +- {stdev(values):.{digits_}f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--inputs", type=int, nargs="+", default=[1297, 32])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    options = recipes.read("calibrated", recipes.parse_options(given.set)).calibrated
    rows = [found for seed in given.seeds for found in one_seed(given.k, seed, given.inputs, options)]
    print(table(rows))
    if given.out is not None:
        given.out.write_text(table(rows))
        given.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
