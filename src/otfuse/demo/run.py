"""What ``make demo`` does: two pairs of small models trained on handwritten digits, fused, compared with controls on held-out images."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from otfuse import pipeline
from otfuse.demo import earlier, words
from otfuse.demo.figure import figure
from otfuse.demo.images import HELD_OUT, IMAGES, RARE, Digits, digits, halves, seen
from otfuse.errors import OtfuseError, OutputError
from otfuse.evaluate.metrics import evaluate, evaluate_ensemble
from otfuse.io.checkpoint import load_model, open_checkpoint
from otfuse.io.parents import module_hash
from otfuse.io.writer import write_checkpoint
from otfuse.testing.small import image_classifier
from otfuse.train.finetune import finetune
from otfuse.train.options import FinetuneOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import nn

    from otfuse.core.dataset import Dataset
    from otfuse.evaluate.metrics import Score

    Progress = Callable[[str, int, int], None]

AUTO = {"otfusion.regulariser": "auto"}
RECIPES: dict[str, dict[str, Any]] = {  # with the options laid over each
    "vanilla": {},
    "otfusion-acts": AUTO,
    "otfusion-wts": AUTO,
    "otfusion-emd": {},
    "aligned": {},
    "calibrated": {},
    "auto": {},
}
HALVES, PARENTS = ("half-a", "half-b"), ("parent-a", "parent-b")  # folders; the first of each is the anchor
PAIRS = {"different digits": HALVES, "same digits, other seeds": PARENTS}
SEEDS = (1, 2)  # of the parents of both pairs
SEED = 0  # of fusing; which images are held out is always the same


@dataclass(frozen=True, slots=True)
class Settings:
    """``train`` makes a parent of all digits, ``half`` one that knows five of them; ``finetune`` is the same for every model.

    ``labels`` counts the images of finetuning, ``probe`` those that recipes are given without labels, ``steps`` those of
    ``auto`` and of distilling the controls.
    """

    train: FinetuneOptions = FinetuneOptions(  # noqa: RUF009  frozen
        steps=600, batch_size=64, learning_rate=1e-3, weight_decay=0.05, label_smoothing=0.1, device="cpu"
    )
    half: FinetuneOptions = FinetuneOptions(  # noqa: RUF009  frozen
        steps=400, batch_size=32, learning_rate=1e-3, weight_decay=0.05, device="cpu"
    )
    finetune: FinetuneOptions = FinetuneOptions(steps=50, batch_size=25, learning_rate=2e-4, device="cpu")  # noqa: RUF009  frozen
    labels: int = 100
    probe: int = IMAGES - HELD_OUT
    steps: int = 150


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A model, or the ensemble of several, to be compared: ``kind`` is parent, ensemble, fused or control; ``notes`` are what its making had to say."""

    method: str
    kind: str
    models: tuple[nn.Module, ...]
    notes: dict[str, Any] = field(default_factory=dict)


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
    folder: Path, progress: Progress, settings: Settings | None = None, seeds: tuple[int, int] = SEEDS
) -> dict[str, Any]:
    """Trains what is missing in ``folder``, fuses, compares; the results, as written to ``folder/results.json``.

    What an earlier run left there is used: its parents, and all its results if code, settings, machine and parents are
    the same. What the demo did not make is never replaced.

    ``seeds`` are those of the two parents, in both pairs. ``rows``: per ``pair`` and ``method`` the ``kind`` (parent, ensemble,
    fused, control), the shares of held-out images that it gets right (``one_shot``, ``finetuned``), its losses in nats
    (``one_shot_loss``, ``finetuned_loss``) and, where something was made, the processor ``seconds`` of making it (one thread)
    and the report's ``notes``; ``remarks``: per pair sentences about its rows; ``digits``: what each half knows;
    ``table``: all of it, in markdown. Also writes results.md and figure.png. Raises :class:`OutputError` if the folder
    cannot be written, or holds what is not the demo's.
    """
    began, chosen = (time.perf_counter(), time.process_time()), settings or Settings()
    earlier.require_own(folder, (*HALVES, *PARENTS))
    data, known = digits(chosen.probe), dict(zip(HALVES, halves(seeds), strict=True))
    drawn = {name: seed for names in PAIRS.values() for name, seed in zip(names, seeds, strict=True)}
    models = {n: parent(folder / n, seed, data, chosen, progress, known.get(n)) for n, seed in drawn.items()}
    used = drawn | {"fuse": SEED, "finetune": chosen.finetune.seed}
    made_of = [module_hash(model) for model in models.values()]
    key = earlier.fingerprint(made_of, _plain(chosen), used, machine(), folder.name)
    if (found := earlier.read_results(folder)) is not None and found.get("fingerprint") == key:
        for stage in ("fuse", "compare"):
            progress(stage, 1, 1)
        _write(folder, found)
        return found
    results = _compared(models, data, chosen, progress) | {
        "settings": _plain(chosen),
        "seeds": used,
        "fingerprint": key,
    }
    results |= {"digits": {name: list(own) for name, own in known.items()}}
    results |= {"machine": machine(), "command": f"otfuse demo {folder.name}"}
    results["table"] = _text(results, chosen)
    results["seconds"] = round(time.perf_counter() - began[0], 1)
    results["processor_seconds"] = round(time.process_time() - began[1], 1)
    _write(folder, results)
    return results


def _compared(models: dict[str, nn.Module], data: Digits, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Rows and remarks of every pair."""
    pipeline.trace(models[HALVES[0]])  # what Python loads at the first use is no cost of the method that comes first
    rows, said = list[dict[str, Any]](), dict[str, list[str]]()
    for pair, names in PAIRS.items():
        candidates = made(pair, {name: models[name] for name in names}, data, settings, progress)
        own = compare(candidates, data, settings, progress, f"compare, {pair}")
        said[pair] = words.remarks(own, settings.probe)
        rows += [{"pair": pair} | row for row in own]
    return {"rows": rows, "remarks": said}


def parent(
    folder: Path, seed: int, data: Digits, settings: Settings, progress: Progress, own: tuple[int, ...] | None = None
) -> nn.Module:
    """The checkpoint in ``folder``, trained first if it is missing, damaged or of other settings; goes on if cut off.

    ``own``: the digits that it knows (:func:`otfuse.demo.images.seen`); None: all, each image at nine places.
    """
    options = (settings.train if own is None else settings.half).model_copy(update={"seed": seed})
    images = data.shifted if own is None else seen(data.train, own, seed)
    made_by = json.dumps(options.model_dump() | ({} if own is None else {earlier.DIGITS: own}), sort_keys=True)
    if (found := _whole(folder, made_by)) is not None:
        progress(f"train {folder.name}", 1, 1)
        return found
    told: Callable[[int, int, float], None] = lambda step, steps, _: progress(f"train {folder.name}", step, steps)  # noqa: E731
    trained = finetune(image_classifier(seed=seed), images, options=options, out=folder, on_step=told)
    write_checkpoint(folder, trained.model.eval(), None, files={earlier.MARK: made_by}, overwrite=True)
    trained.finish()
    return trained.model


def made(
    pair: str, parents: dict[str, nn.Module], data: Digits, settings: Settings, progress: Progress
) -> list[Candidate]:
    """The parents, their ensemble, what each recipe makes of them, and the controls: no fusing, the same distilling."""
    models = list(parents.values())
    candidates = [Candidate(name, "parent", (model,)) for name, model in parents.items()]
    candidates.append(Candidate("ensemble", "ensemble", tuple(models)))
    alike = {"distilled.steps": settings.steps}
    jobs = [
        (name, "fused", name, models, options | ({"auto.steps": settings.steps} if name == "auto" else {}))
        for name, options in RECIPES.items()
    ]
    for first, order in zip(parents, (models, models[::-1]), strict=True):
        jobs.append((f"{first} distilled", "control", "distilled", order, {"distilled.start": "anchor"} | alike))
    jobs.append(("vanilla distilled", "control", "distilled", models, {"distilled.start": "plain"} | alike))
    for done, (method, kind, recipe, order, options) in enumerate(jobs):
        progress(f"fuse, {pair}", done, len(jobs))
        candidates.append(_fused(method, kind, recipe, options, order, data))
    progress(f"fuse, {pair}", len(jobs), len(jobs))
    return candidates


def compare(
    candidates: list[Candidate], data: Digits, settings: Settings, progress: Progress, stage: str = "compare"
) -> list[dict[str, Any]]:
    """One row per candidate: held-out scores as it is, and after finetuning on the same few labels, the same for all.

    An ensemble is finetuned by finetuning its members.
    """
    rows, tuned, few = [], dict[int, Any](), data.train.take(slice(0, settings.labels))
    for done, candidate in enumerate(candidates):
        for model in candidate.models:
            if id(model) not in tuned:
                tuned[id(model)] = finetune(model, few, options=settings.finetune).model
        first = _score(candidate.models, data.held_out)
        second = _score(tuple(tuned[id(m)] for m in candidate.models), data.held_out)
        figures = {"one_shot": first.accuracy, "finetuned": second.accuracy}
        losses = {"one_shot_loss": first.loss, "finetuned_loss": second.loss}
        rows.append({"method": candidate.method, "kind": candidate.kind, **figures, **losses, **candidate.notes})
        progress(stage, done + 1, len(candidates))
    return rows


def machine() -> dict[str, Any]:
    """What the figures were made on: system, cores, threads, versions."""
    packages = {name: version(name) for name in ("otfuse", "torch", "transformers", "accelerate", "numpy", "pot")}
    return {
        "system": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "python": platform.python_version(), **packages,
    }  # fmt: skip


def _text(results: dict[str, Any], settings: Settings) -> str:
    """Both tables, what they say, and what made them, in markdown."""
    knows = [f"{name} knows {words.joined([str(d) for d in own])}" for name, own in results["digits"].items()]
    about = {
        "different digits": f"{'; '.join(knows)}: each saw all images of its own digits and one in {RARE} of the others.",
        "same digits, other seeds": "Both parents saw all training images, each at nine places.",
    }
    parts = []
    for pair in PAIRS:
        rows = [row for row in results["rows"] if row["pair"] == pair]
        said = "\n".join(f"- {sentence}" for sentence in results["remarks"][pair])
        parts.append(f"## Parents: {pair}\n\n{about[pair]}\n\n{words.table(rows)}\n{said}\n")
    told = (
        f"Accuracy on {HELD_OUT} held-out images, loss in nats. Every recipe was given the same {settings.probe} training images without labels; auto and the "
        f'controls ("distilled": a parent, or the plain average, towards the same target) train for {settings.steps} steps, learning rates chosen alike. Seconds: processor time of making the model, one thread. '
        f"Finetuned: the same {settings.finetune.steps} steps on the same {settings.labels} labelled images for every row."
    )
    return "\n".join([*parts, told, "", _source(results)]) + "\n"


def _fused(
    method: str, kind: str, recipe: str, options: dict[str, Any], parents: list[nn.Module], data: Digits
) -> Candidate:
    began = time.process_time()
    fused = pipeline.fuse(parents, recipe=recipe, data=data.probe, options=options, seed=SEED)
    notes: dict[str, Any] = {"seconds": round(time.process_time() - began, 2), "notes": list(fused.report.notes)}
    if options.get("otfusion.regulariser") == "auto":  # the recipe of the report holds what was used
        notes["regulariser"] = fused.report.recipe.otfusion.regulariser
    return Candidate(method, kind, (fused.model,), notes)


def _score(models: tuple[nn.Module, ...], data: Dataset) -> Score:
    return evaluate(models[0], data) if len(models) == 1 else evaluate_ensemble(models, data)


def _whole(folder: Path, made_by: str) -> nn.Module | None:
    try:
        if (folder / earlier.MARK).read_text(encoding="utf-8") != made_by:
            return None
        return load_model(open_checkpoint(folder)).eval()
    except (OSError, UnicodeDecodeError, OtfuseError):
        return None


def _plain(settings: Settings) -> dict[str, Any]:
    trained = {name: getattr(settings, name).model_dump(exclude_none=True) for name in ("train", "half", "finetune")}
    counts = {name: getattr(settings, name) for name in ("labels", "probe", "steps")}
    return trained | counts | {"held_out": HELD_OUT}


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
        by_pair = {pair: [row for row in results["rows"] if row["pair"] == pair] for pair in PAIRS}
        figure(by_pair, folder / "figure.png")
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"results cannot be written to {folder}: {reason}; choose another folder") from None
