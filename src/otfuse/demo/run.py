"""What ``make demo`` does: two small models trained on handwritten digits, fused in four ways, compared on held-out images."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from otfuse import pipeline
from otfuse.core.dataset import Dataset
from otfuse.demo import earlier
from otfuse.demo.figure import figure
from otfuse.errors import OtfuseError, OutputError
from otfuse.evaluate.metrics import evaluate, evaluate_ensemble
from otfuse.io.checkpoint import load_model, open_checkpoint
from otfuse.io.parents import module_hash
from otfuse.io.writer import write_checkpoint
from otfuse.testing.small import image_classifier
from otfuse.train.finetune import finetune
from otfuse.train.options import FinetuneOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from otfuse.evaluate.metrics import Score

    Progress = Callable[[str, int, int], None]

RECIPES: dict[str, dict[str, Any]] = {  # with the options laid over each
    "vanilla": {},
    "otfusion-acts": {"otfusion.regulariser": "auto"},
    "otfusion-wts": {"otfusion.regulariser": "auto"},
    "otfusion-emd": {},
}
PARENTS = {"parent-a": 1, "parent-b": 2}  # folder -> seed; the first is the anchor
SEED = 0  # of fusing; which images are held out is always the same
HELD_OUT = 500
LOW = 0.10  # a fused model that is further below the weaker parent than this is called low
_BOX = slice(2, 18)  # of an image of 16 x 16 padded by two on each side


@dataclass(frozen=True, slots=True)
class Settings:
    """``train`` makes a parent from random weights, ``finetune`` is the same for every model; ``probe`` counts images."""

    train: FinetuneOptions = FinetuneOptions(  # noqa: RUF009  frozen
        steps=1200, batch_size=64, learning_rate=1e-3, weight_decay=0.05, label_smoothing=0.1, device="cpu"
    )
    finetune: FinetuneOptions = FinetuneOptions(steps=100, batch_size=64, learning_rate=2e-4, device="cpu")  # noqa: RUF009  frozen
    probe: int = 400


@dataclass(frozen=True, slots=True, eq=False)
class Digits:
    """Images of 16 x 16 from scikit-learn's 1,797 of 8 x 8; ``probe`` is a part of ``train`` without labels."""

    train: Dataset
    shifted: Dataset
    probe: Dataset
    held_out: Dataset


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A model, or the ensemble of several, to be compared; ``notes`` are what its fusing had to say."""

    method: str
    models: tuple[nn.Module, ...]
    notes: dict[str, Any]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from a second thread, and one makes the figures the same on any number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def run(
    folder: Path, progress: Progress, settings: Settings | None = None, seeds: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Trains what is missing in ``folder``, fuses, compares; the results, as written to ``folder/results.json``.

    What an earlier run left there is used: its parents, and all its results if code, settings, machine and parents are
    the same. What the demo did not make is never replaced.

    ``seeds`` are those of the parents, by folder. ``rows``: per method the shares of held-out images that it gets right (``one_shot``, ``finetuned``) and its losses in
    nats (``one_shot_loss``, ``finetuned_loss``); ``remarks``: sentences about them; ``table``: both, in markdown.
    Also writes results.md and figure.png. Raises :class:`OutputError` if the folder cannot be written, or holds
    what is not the demo's.
    """
    began, chosen = time.perf_counter(), settings or Settings()
    earlier.require_own(folder, PARENTS)
    data, drawn = digits(chosen.probe), dict(seeds or PARENTS)
    parents = {name: parent(folder / name, seed, data, chosen, progress) for name, seed in drawn.items()}
    seeds = drawn | {"fuse": SEED, "finetune": chosen.finetune.seed}
    made_of = [module_hash(model) for model in parents.values()]
    key = earlier.fingerprint(made_of, _plain(chosen), seeds, machine(), folder.name)
    if (found := earlier.read_results(folder)) is not None and found.get("fingerprint") == key:
        for stage in ("fuse", "compare"):
            progress(stage, 1, 1)
        _write(folder, found)
        return found
    candidates = [Candidate(name, (model,), {}) for name, model in parents.items()]
    candidates.append(Candidate("ensemble", tuple(parents.values()), {"models": len(parents)}))
    for done, (recipe, options) in enumerate(RECIPES.items()):
        progress("fuse", done, len(RECIPES))
        candidates.append(_fused(recipe, options, list(parents.values()), data))
    progress("fuse", len(RECIPES), len(RECIPES))
    rows = compare(candidates, data, chosen, progress)
    results: dict[str, Any] = {"rows": rows, "remarks": remarks(rows, chosen), "settings": _plain(chosen)}
    results["seeds"], results["fingerprint"] = seeds, key
    results["machine"], results["command"] = machine(), f"otfuse demo {folder.name}"
    results["table"] = table(rows, [*results["remarks"], "", _source(results)])
    results["seconds"] = round(time.perf_counter() - began, 1)
    _write(folder, results)
    return results


def digits(probe: int) -> Digits:
    """The images, split always in the same way; ``shifted`` holds each training image at nine places, half a pixel apart."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    small = torch.from_numpy((pixels.reshape(-1, 1, 8, 8) / 8 - 1).astype(np.float32))
    large = torch.nn.functional.interpolate(small, size=(16, 16), mode="bilinear", align_corners=False)
    order = np.random.default_rng(0).permutation(len(labels))
    kept, held_out = order[:-HELD_OUT], order[-HELD_OUT:]
    padded = torch.nn.functional.pad(large[kept], (2, 2, 2, 2), value=-1.0)
    places = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    shifted = [padded[:, :, _moved(dy), _moved(dx)] for dy, dx in places]
    train = _dataset(large[kept], labels[kept])
    return Digits(
        train=train,
        shifted=_dataset(torch.cat(shifted), np.tile(labels[kept], len(places))),
        probe=Dataset(train.take(slice(0, probe)).inputs),
        held_out=_dataset(large[held_out], labels[held_out]),
    )


def parent(folder: Path, seed: int, data: Digits, settings: Settings, progress: Progress) -> nn.Module:
    """The checkpoint in ``folder``, trained first if it is missing, damaged or of other settings; goes on if cut off."""
    options = settings.train.model_copy(update={"seed": seed})
    made_by = json.dumps(options.model_dump(), sort_keys=True)
    if (found := _whole(folder, made_by)) is not None:
        progress(f"train {folder.name}", 1, 1)
        return found
    told: Callable[[int, int, float], None] = lambda step, steps, _: progress(f"train {folder.name}", step, steps)  # noqa: E731
    trained = finetune(image_classifier(seed=seed), data.shifted, options=options, out=folder, on_step=told)
    write_checkpoint(folder, trained.model.eval(), None, files={earlier.MARK: made_by}, overwrite=True)
    trained.finish()
    return trained.model


def compare(candidates: list[Candidate], data: Digits, settings: Settings, progress: Progress) -> list[dict[str, Any]]:
    """One row per candidate: held-out scores as it is, and after the finetuning that is the same for all.

    An ensemble is finetuned by finetuning its members.
    """
    rows, tuned = [], dict[int, Any]()
    for done, candidate in enumerate(candidates):
        for model in candidate.models:
            if id(model) not in tuned:
                tuned[id(model)] = finetune(model, data.train, options=settings.finetune).model
        first = _score(candidate.models, data.held_out)
        second = _score(tuple(tuned[id(m)] for m in candidate.models), data.held_out)
        figures = {"one_shot": first.accuracy, "finetuned": second.accuracy}
        losses = {"one_shot_loss": first.loss, "finetuned_loss": second.loss}
        rows.append({"method": candidate.method, **figures, **losses, **candidate.notes})
        progress("compare", done + 1, len(candidates))
    return rows


def remarks(rows: list[dict[str, Any]], settings: Settings) -> list[str]:
    """What a reader of the table has to know; a low one-shot accuracy is said, not hidden."""
    by_name = {row["method"]: row for row in rows}
    weaker = min(by_name[name]["one_shot"] for name in PARENTS)
    fused = [by_name[name] for name in RECIPES if name in by_name]
    best = max(fused, key=lambda row: float(row["one_shot"]))
    said = [
        f"Accuracy on {HELD_OUT} held-out images, loss in nats; finetuned: the same {settings.finetune.steps} steps for every row."
    ]
    if best["one_shot"] < weaker - LOW:
        said.append(
            f"One-shot accuracy is low: the best fused model ({best['method']}) gets {_percent(best['one_shot'])} % right, "
            f"the weaker parent {_percent(weaker)} %; use a fused model of this table after finetuning only."
        )
    if all(row["finetuned"] <= max(by_name[name]["finetuned"] for name in PARENTS) for row in fused):
        said.append("After finetuning, no fused model is better than the better parent finetuned alike.")
    chosen = [f"{row['regulariser']:g} for {row['method']}" for row in fused if "regulariser" in row]
    if chosen:
        said.append(
            f"Regulariser: {', '.join(chosen)}; of several, the one whose result departs least from the parents' mean "
            f"prediction on {settings.probe} training images without their labels."
        )
    return said


def machine() -> dict[str, Any]:
    """What the figures were made on: system, cores, threads, versions."""
    packages = {name: version(name) for name in ("otfuse", "torch", "transformers", "accelerate", "numpy", "pot")}
    return {
        "system": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "python": platform.python_version(), **packages,
    }  # fmt: skip


def table(rows: list[dict[str, Any]], said: list[str]) -> str:
    """The rows and the remarks in markdown."""
    lines = ["| | one-shot, % | loss | finetuned, % | loss |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        cells = (
            _percent(row["one_shot"]), f"{row['one_shot_loss']:.3f}",
            _percent(row["finetuned"]), f"{row['finetuned_loss']:.3f}",
        )  # fmt: skip
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *said]) + "\n"


def _fused(recipe: str, options: dict[str, Any], parents: list[nn.Module], data: Digits) -> Candidate:
    began = time.perf_counter()
    fused = pipeline.fuse(parents, recipe=recipe, data=data.probe, options=options, seed=SEED)
    notes: dict[str, Any] = {"seconds": round(time.perf_counter() - began, 2), "notes": list(fused.report.notes)}
    if options.get("otfusion.regulariser") == "auto":  # the recipe of the report holds what was used
        notes["regulariser"] = fused.report.recipe.otfusion.regulariser
    return Candidate(recipe, (fused.model,), notes)


def _score(models: tuple[nn.Module, ...], data: Dataset) -> Score:
    return evaluate(models[0], data) if len(models) == 1 else evaluate_ensemble(models, data)


def _whole(folder: Path, made_by: str) -> nn.Module | None:
    try:
        if (folder / earlier.MARK).read_text(encoding="utf-8") != made_by:
            return None
        return load_model(open_checkpoint(folder)).eval()
    except (OSError, UnicodeDecodeError, OtfuseError):
        return None


def _dataset(images: torch.Tensor, labels: NDArray[np.int64]) -> Dataset:
    return Dataset({"pixel_values": images.numpy()}, labels)


def _moved(by: int) -> slice:
    return slice(_BOX.start + by, _BOX.stop + by)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _plain(settings: Settings) -> dict[str, Any]:
    train, tune = settings.train.model_dump(exclude_none=True), settings.finetune.model_dump(exclude_none=True)
    return {"train": train, "finetune": tune, "probe": settings.probe, "held_out": HELD_OUT}


def _source(results: dict[str, Any]) -> str:
    named = {"seeds": results["seeds"], "machine": results["machine"]}
    plain = {key: ", ".join(f"{name} {value}" for name, value in part.items()) for key, part in named.items()}
    return f"Made by `{results['command']}`; seeds: {plain['seeds']}. Machine: {plain['machine']}."


def _write(folder: Path, results: dict[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = (
            folder / f".{earlier.RESULTS}.part"
        )  # the file tells whose the others are, so it is there whole or not at all
        part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        part.replace(folder / earlier.RESULTS)
        (folder / "results.md").write_text(results["table"], encoding="utf-8")
        figure(results["rows"], folder / "figure.png")
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"results cannot be written to {folder}: {reason}; choose another folder") from None
