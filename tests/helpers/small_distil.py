"""A distillation small enough for a test, which can be a process of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import torch

import small_run as small
from otfuse.core.dataset import Dataset
from otfuse.measure.probe import Side
from otfuse.measure.targets import split, together
from otfuse.program.export import export
from otfuse.program.weights import Weights
from otfuse.train.distil import Course, distil
from otfuse.train.lesson import Lesson
from otfuse.train.progress import Progress

STEPS = 12


def side(model) -> Side:
    program = export(model.eval(), {"input_ids": torch.zeros(7, small.LENGTH, dtype=torch.int64)})
    tensors = dict(model.named_parameters())
    return Side(program, None, Weights({name: tensors[name] for name in program.ties}))  # type: ignore[arg-type]


def parts(dropout: float = 0.3) -> SimpleNamespace:
    """Two taggers, what they predict together where a mask says that it counts, and the mean of their weights."""
    model, labelled = small.parts(dropout)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        other = small.Tagger(dropout)
    places = labelled.labels != -100  # an uneven number per example
    data = Dataset(dict(labelled.inputs))
    sides = [side(model), side(other)]
    for own, gain in zip(sides, (6.0, 3.0), strict=True):  # sharp enough to learn something from
        own.weights["head.weight"].mul_(gain)
    targets = together(sides, (0.5, 0.5), data, places)
    weights = {n: (t + sides[1].weights[n]) / 2 for n, t in sides[0].weights.items()}
    learned, held = split(data.size, 0.25, 0)
    lesson = Lesson(model, data, targets)
    return SimpleNamespace(**{n: v for n, v in locals().items() if n not in ("labelled", "dropout", "own", "gain")})


def course(**changes: object) -> Course:
    chosen = {"steps": STEPS, "batch_size": 8, "learning_rate": 0.02, "seed": 4, "device": "cpu", "save_every": 2}
    return Course(**{**chosen, **changes})  # type: ignore[arg-type]


def run(p: SimpleNamespace, **more: object):
    wanted = more.pop("course", course())
    return distil(p.model, more.pop("weights", p.weights), p.lesson, p.learned, p.held, wanted, **more)  # type: ignore[arg-type]


def main(out: Path, weights: Path, kill: str = "never", number: int = 0) -> None:
    """One run that ends itself at a step or in a save, if told to."""
    torch.set_num_threads(1)
    saves, true_replace = [], Path.replace

    def replace(self: Path, target: Path) -> None:
        saves.append(target)
        if len(saves) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        true_replace(self, target)

    if kill == "save":
        Path.replace = replace  # type: ignore[method-assign, assignment]

    def on_step(step: int, *_: object) -> None:
        if kill == "step" and step == number:
            os.kill(os.getpid(), signal.SIGKILL)

    made = run(
        parts(), progress=Progress.beside(out), run={"one": 1}, on_step=on_step, course=course(learning_rate=None)
    )
    if made.is_main:
        processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        torch.save({"processes": processes, "rate": made.learning_rate, "best": made.best, **made.weights}, weights)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
