"""One-shot loss of aligned models beside the plain average and the published method: digit classifiers of three pairs of seeds.

    python experiments/aligned/run.py FOLDER [--out experiments/aligned/results.md] [--recipes aligned ...] [--pairs 1-2 3-4]

Images are those of `otfuse demo`; FOLDER keeps what is trained, a folder per pair. Nothing is trained after fusing.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from otfuse import pipeline
from otfuse.demo import run as demo
from otfuse.evaluate.metrics import evaluate, evaluate_ensemble
from otfuse.train.options import FinetuneOptions

if TYPE_CHECKING:
    from torch import nn

RECIPES: dict[str, dict[str, Any]] = {
    "vanilla": {},
    "otfusion-wts": {"otfusion.regulariser": "auto"},
    "aligned": {},
    "aligned, `evenness` 0": {"aligned.evenness": 0.0},
    "aligned-acts": {},
}
PAIRS = ("1-2", "3-4", "5-6")
TRAIN = FinetuneOptions(
    steps=1200, batch_size=64, learning_rate=1e-3, weight_decay=0.05, label_smoothing=0.1, device="cpu"
)
PROBE = 400  # training images without labels


def rows(folder: Path, pair: str, recipes: list[str], data: demo.Digits) -> list[tuple[str, float, float, float]]:
    """(method, loss, accuracy in percent, processor seconds) of one pair."""
    seeds = [int(part) for part in pair.split("-")]
    tell = lambda stage, done, total: None  # noqa: E731, ARG005
    parents = [
        demo.parent(folder / pair / name, seed, data, demo.Settings(train=TRAIN), tell)
        for name, seed in zip(demo.PARENTS, seeds, strict=True)
    ]
    found = [(f"parent {'ab'[i]}", *score(evaluate(model, data.held_out)), 0.0) for i, model in enumerate(parents)]
    found.append(("ensemble", *score(evaluate_ensemble(parents, data.held_out)), 0.0))
    for recipe in recipes:
        found.append((recipe, *fused(recipe, parents, data)))
        print(pair, *found[-1], file=sys.stderr, flush=True)
    return found


def fused(recipe: str, parents: list[nn.Module], data: demo.Digits) -> tuple[float, float, float]:
    """Loss, accuracy and seconds of one recipe."""
    began = time.process_time()
    made = pipeline.fuse(
        parents,
        recipe.partition(",")[0],
        data=data.probe,
        options=RECIPES.get(recipe, {}),
        seed=demo.SEED,
        verify=False,
    )
    seconds = time.process_time() - began
    return (*score(evaluate(made.model, data.held_out)), seconds)


def score(found: Any) -> tuple[float, float]:
    """Loss and accuracy in percent."""
    return found.loss, 100 * found.accuracy


def main() -> None:
    """Every recipe on every pair; the table of means."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("folder", type=Path)
    asked.add_argument("--out", type=Path)
    asked.add_argument("--recipes", nargs="+", default=list(RECIPES))
    asked.add_argument("--pairs", nargs="+", default=list(PAIRS))
    args = asked.parse_args()
    torch.set_num_threads(1)
    data = demo.digits(PROBE)
    found = [rows(args.folder, pair, args.recipes, data) for pair in args.pairs]
    lines = ["| | loss | accuracy, % | of each pair | processor s |", "|---|---:|---:|---|---:|"]
    for alike in zip(*found, strict=True):
        loss, accuracy, seconds = (mean(row[i] for row in alike) for i in (1, 2, 3))
        each = ", ".join(f"{row[2]:.1f}" for row in alike)
        lines.append(f"| {alike[0][0]} | {loss:.3f} | {accuracy:.1f} | {each} | {seconds:.1f} |")
    text = "\n".join(lines)
    print(text)
    if args.out is not None:
        args.out.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
