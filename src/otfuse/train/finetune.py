"""Finetuning: a trained copy of a model, the same whether or not it was interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from otfuse.core.dataset import Dataset
from otfuse.errors import UsageError
from otfuse.evaluate.metrics import Score, evaluate
from otfuse.evaluate.task import Batch, Kind, Task, derive, stream
from otfuse.train.options import FinetuneOptions
from otfuse.train.progress import Progress, fingerprint, tidy
from otfuse.train.worker import Worker, start

OnStep = Callable[[int, int, float], object]


@dataclass(frozen=True, slots=True, eq=False)
class TrainReport:
    """The trained copy and how it came about.

    ``loss`` is the training loss of the last update (nats, label smoothing included, or squared error; None if this call made none),
    ``resumed_from`` the number of updates found done, ``is_main`` whether this process is the one that writes.
    """

    model: nn.Module
    steps: int
    examples: int
    loss: float | None
    resumed_from: int
    processes: int
    is_main: bool
    seconds: float
    validation: Score | None
    progress: Progress | None

    def finish(self) -> None:
        """Deletes the working folder. Call it once the result is written: before, a kill still resumes."""
        if self.progress is not None and self.is_main:
            self.progress.remove()


def finetune(
    model: nn.Module,
    data: Dataset,
    *,
    options: FinetuneOptions,
    out: Path | None = None,
    validation: Dataset | None = None,
    on_step: OnStep | None = None,
    restart: bool = False,
    mask_token_id: int | None = None,
    special_ids: Collection[int] = (),
) -> TrainReport:
    """Trains a copy of ``model`` on ``data`` with the loss that :func:`otfuse.evaluate.task.derive` finds.

    Under ``accelerate launch`` each process calls this alike and computes its share of each batch: the weights are
    those of one process, up to rounding, except where the model draws random numbers (dropout) or statistics of its
    share (batch norm). With ``out``, progress is kept in ``.NAME.progress`` beside it (a file system that all
    processes share) and the same call goes on where a killed one stopped, to the same weights bit for bit on the same
    number of processes; ``restart`` begins anew. The result is the caller's to write; call ``report.finish()`` then.
    ``on_step(step, steps, loss)`` is called after each update, ``step`` counting from one.

    Raises DataError, DeviceError, OutputError, and TrainError if the loss is not finite or the progress is another run's.
    """
    began = time.perf_counter()
    tokens: dict[str, Any] = {"mask_token_id": mask_token_id, "special_ids": tuple(special_ids), "seed": options.seed}
    task = _checked_task(model, data, **tokens)
    lesson = _Labelled(task, options.label_smoothing)
    if validation is not None:
        _checked_task(model, validation, **tokens)
    accelerator = start(options)
    run = fingerprint(model, data, options, [mask_token_id, sorted(special_ids)]) if out is not None else {}
    progress = _progress(out, accelerator, restart=restart)
    worker = Worker(model, lesson, options, accelerator)
    with tidy(progress if accelerator.is_main_process else None):
        done, loss = _train(worker, task, data, progress, run, on_step)
    trained = worker.finish()
    score = None if validation is None else evaluate(trained, validation, device=accelerator.device, **tokens)
    processes, is_main = accelerator.num_processes, accelerator.is_main_process
    steps, examples, seconds = options.total_steps(data.size), data.size, time.perf_counter() - began
    return TrainReport(trained, steps, examples, loss, done, processes, is_main, seconds, score, progress)


@dataclass(frozen=True, slots=True)
class _Labelled:
    """Cross-entropy against the labels that a task finds, or their squared error."""

    task: Task
    smoothing: float

    def __post_init__(self) -> None:
        if self.smoothing and self.task.kind is Kind.NUMBERS:
            raise UsageError(
                f"label_smoothing {self.smoothing:g}: the model predicts numbers, not classes; leave it out"
            )

    def loss(self, model: nn.Module, like: nn.Module, batch: Batch, device: torch.device) -> Tensor:
        return self.task.loss(*self.task.predict(model, like, batch, device), smoothing=self.smoothing)


def _train(
    worker: Worker, task: Task, data: Dataset, progress: Progress | None, run: dict[str, Any], on_step: OnStep | None
) -> tuple[int, float | None]:
    """All updates not yet done: how many were done before, and the loss of the last one."""
    options, accelerator = worker.options, worker.accelerator
    steps, saved = options.total_steps(data.size), progress.load(run) if progress is not None else None
    done, loss = (int(saved["step"]) if saved else 0), None
    accelerator.wait_for_everyone()  # nobody writes while another still reads
    if saved:
        worker.restore(saved)
    elif progress is not None and accelerator.is_main_process:
        progress.open()
    for step in range(done, steps):
        rows, epoch = batch_rows(step, data.size, options)
        loss = worker.update(task.batch(data, rows, epoch), step, options.learning_rate_at(step, steps))
        due = (step + 1) % options.save_every == 0 or step + 1 == steps
        if due and progress is not None and accelerator.is_main_process:
            progress.save(run, {"step": step + 1, **worker.state()})
        if on_step is not None and accelerator.is_main_process:
            on_step(step + 1, steps, loss)
    return done, loss


def batch_rows(step: int, examples: int, options: FinetuneOptions) -> tuple[NDArray[np.int64], int]:
    """The examples of update ``step`` and its epoch: a function of the seed alone, so that no state need be kept."""
    epoch, index = divmod(step, options.steps_per_epoch(examples))
    order = _order(options.seed, epoch, examples)
    return order[index * options.batch_size : (index + 1) * options.batch_size], epoch


@lru_cache(maxsize=1)
def _order(seed: int, epoch: int, examples: int) -> NDArray[np.int64]:
    return np.argsort(stream(seed, "order", epoch).random(examples), kind="stable")


def _checked_task(model: nn.Module, data: Dataset, **tokens: Any) -> Task:
    """What the model predicts; a label that is no class is an error now, and not hours later."""
    task = derive(model, data, **tokens)
    if data.labels is not None and task.mask_token_id is None:
        for first in range(0, data.size, 1024):
            task.batch(data, np.arange(first, min(first + 1024, data.size)))
    return task


def _progress(out: Path | None, accelerator: Accelerator, *, restart: bool) -> Progress | None:
    progress = None if out is None else Progress.beside(out)
    if progress is not None and restart and accelerator.is_main_process:
        progress.remove()
    accelerator.wait_for_everyone()
    return progress
