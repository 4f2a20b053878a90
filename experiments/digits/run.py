"""Fuses digit classifiers that the demo does not: plain modules with a fused query-key-value weight, and unequal widths.

    python experiments/digits/run.py FOLDER [--out experiments/digits/results.md]

Images are those of `otfuse demo`. FOLDER keeps what is trained. Plain models are fused as modules through the Python API.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from otfuse import pipeline
from otfuse.core.dataset import Dataset
from otfuse.demo import run as demo
from otfuse.errors import OtfuseError
from otfuse.evaluate.metrics import evaluate, evaluate_ensemble
from otfuse.testing.plain import PlainVit
from otfuse.testing.small import image_classifier
from otfuse.train.finetune import finetune
from otfuse.train.options import FinetuneOptions

if TYPE_CHECKING:
    from torch import nn

AUTO = {"otfusion.regulariser": "auto"}
RECIPES: dict[str, dict[str, Any]] = {"otfusion-acts": AUTO, "otfusion-wts": AUTO, "otfusion-emd": {}}
PLAIN_SEEDS = {"plain-a": 1, "plain-b": 2}
WIDE = {"hidden": 96, "mlp": 192, "heads": 6, "seed": 2}
NARROW_SEED = 1
TRAIN = FinetuneOptions(
    steps=1200, batch_size=64, learning_rate=1e-3, weight_decay=0.05, label_smoothing=0.1, device="cpu"
)
TUNE = FinetuneOptions(steps=100, batch_size=64, learning_rate=2e-4, device="cpu")  # on all training images
PROBE = 400
HEADER = "| | regulariser | one-shot, % | loss | finetuned, % | loss |\n|---|---:|---:|---:|---:|---:|"


def plain_vit(seed: int) -> PlainVit:
    """The plain module in the size of the demo's models, weights from ``seed``; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PlainVit(width=64, heads=4, inner=128, layers=4, grid=4, patch=4, labels=10, channels=1)
        for table in (model.token, model.position):
            torch.nn.init.normal_(table, std=0.02)
    return model


def trained(path: Path, model: nn.Module, seed: int, data: Dataset, settings: demo.Settings) -> nn.Module:
    """``model`` with the weights kept at ``path``, trained as the demo trains if there are none."""
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    options = settings.train.model_copy(update={"seed": seed})
    done = finetune(model, data, options=options, on_step=lambda step, steps, _: tell(path.stem, step, steps)).model
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in done.state_dict().items()}, path)
    return done.eval()


def tell(stage: str, done: int, total: int) -> None:
    """Progress on stderr, now and then."""
    if done % 200 == 0:
        print(stage, f"{done}/{total}", file=sys.stderr, flush=True)


class Bench:
    """Scores models on the held-out digits, as they are and finetuned."""

    def __init__(self, data: demo.Digits, settings: demo.Settings, name: str) -> None:
        """``name``: of the input that the models read."""
        renamed = [
            Dataset({name: part.inputs["pixel_values"]}, part.labels)
            for part in (data.train, data.shifted, data.probe, data.held_out)
        ]
        self.data, self.settings, self.rows = demo.Digits(*renamed), settings, list[dict[str, Any]]()

    def score(self, method: str, models: list[nn.Module], *, tune: bool, **notes: Any) -> None:
        """Adds a row; an ensemble is finetuned by finetuning its members."""
        row = {"method": method, **notes}
        steps = {"one_shot": models}
        if tune:
            options = self.settings.finetune
            steps["finetuned"] = [finetune(m, self.data.train, options=options).model for m in models]
        for stage, those in steps.items():
            held_out = self.data.held_out
            found = evaluate(those[0], held_out) if len(those) == 1 else evaluate_ensemble(those, held_out)
            row |= {stage: found.accuracy, f"{stage}_loss": found.loss}
        self.rows.append(row)
        print(row, file=sys.stderr, flush=True)

    def parents(self, named: dict[str, nn.Module]) -> None:
        """Rows of the parents and of their ensemble."""
        for name, model in named.items():
            self.score(name, [model], tune=True)
        self.score("ensemble", list(named.values()), tune=True)

    def fuse(self, models: list[nn.Module], recipe: str, options: dict[str, Any], label: str, *, tune: bool) -> None:
        """Fuses, anchor first, gate included, and adds the row; what is refused is a row with the reason."""
        example = tuple(torch.from_numpy(a[:2]) for a in self.data.probe.inputs.values())
        try:
            fused = pipeline.fuse(
                models, recipe=recipe, options=options, data=self.data.probe, example_inputs=example, seed=0
            )
        except OtfuseError as error:
            self.rows.append({"method": label, "refused": str(error)})
            return
        used = fused.report.recipe.otfusion
        notes: dict[str, Any] = {"gate": fused.report.gate, "notes": list(fused.report.notes)}
        if fused.report.recipe.scheme == "otfusion" and used.solver == "sinkhorn":
            notes["regulariser"] = used.regulariser
        self.score(label, [fused.model], tune=tune, **notes)


def plain(folder: Path, data: demo.Digits, settings: demo.Settings) -> list[dict[str, Any]]:
    """Two plain modules, fused with every recipe."""
    bench = Bench(data, settings, "images")
    models = {
        name: trained(folder / f"{name}.safetensors", plain_vit(seed), seed, bench.data.shifted, settings)
        for name, seed in PLAIN_SEEDS.items()
    }
    bench.parents(models)
    for recipe, options in {"vanilla": {}, **RECIPES}.items():
        bench.fuse(list(models.values()), recipe, options, recipe, tune=True)
    return bench.rows


def unequal(folder: Path, data: demo.Digits, settings: demo.Settings) -> list[dict[str, Any]]:
    """A wide and a narrow model, each as the anchor once; the balanced reading is finetuned too."""
    bench = Bench(data, settings, "pixel_values")
    wide = trained(folder / "wide.safetensors", image_classifier(**WIDE), WIDE["seed"], bench.data.shifted, settings)
    narrow = demo.parent(folder / "parent-a", NARROW_SEED, data, settings, tell)
    bench.parents({"wide": wide, "narrow": narrow})
    for way, models in (("wide into narrow", [narrow, wide]), ("narrow into wide", [wide, narrow])):
        for (recipe, options), reading, heads in product(
            RECIPES.items(), ("balanced", "published"), ("separate", "heads")
        ):
            chosen = options | {"otfusion.unequal": reading, "otfusion.query_key": heads}
            label = f"{way}, {recipe}, {reading}, query_key {heads}"
            bench.fuse(models, recipe, chosen, label, tune=reading == "balanced")
    return bench.rows


def table(title: str, rows: list[dict[str, Any]]) -> str:
    """The rows in markdown."""
    lines = [f"## {title}", "", HEADER]
    for row in rows:
        cells = [f"{row['regulariser']:g}" if "regulariser" in row else ""]
        for stage in ("one_shot", "finetuned"):
            cells += [f"{100 * row[stage]:.1f}", f"{row[f'{stage}_loss']:.3f}"] if stage in row else ["", ""]
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    lines += [f"\nRefused: {row['method']}: {row['refused']}." for row in rows if "refused" in row]
    return "\n".join(lines) + "\n"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = demo.Settings(train=TRAIN, finetune=TUNE, probe=PROBE)
    data = demo.digits(settings.probe)
    record = {
        "machine": demo.machine(),
        "seeds": {**PLAIN_SEEDS, "wide": WIDE["seed"], "narrow": NARROW_SEED, "fuse": 0},
    }
    record["plain"] = plain(given.folder, data, settings)
    record["unequal"] = unequal(given.folder, data, settings)
    named = {key: ", ".join(f"{name} {value}" for name, value in record[key].items()) for key in ("seeds", "machine")}
    head = (
        "# Digits: plain modules, and unequal widths\n\n"
        f"`python experiments/digits/run.py FOLDER`; seeds: {named['seeds']}. Machine: {named['machine']}.\n"
        f"Accuracy on {demo.HELD_OUT} held-out images, loss in nats; finetuned: the same {settings.finetune.steps} steps for every\n"
        f"row that has it. The regulariser is chosen on {settings.probe} training images without their labels. The gate held wherever units were matched.\n"
    )
    parts = [
        head,
        table("Plain modules with a fused query-key-value weight (64 units, 4 heads, inner 128)", record["plain"]),
        table("Wide (96 units, 6 heads, inner 192) and narrow (64, 4, 128)", record["unequal"]),
    ]
    given.out.write_text("\n".join(parts))
    given.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(parts))


if __name__ == "__main__":
    main()
