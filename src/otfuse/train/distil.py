"""Distilling: all weights trained, from any start, towards what several models predict together on unlabelled inputs.

Hinton, Vinyals and Dean 2015 (arXiv 1503.02531) at temperature one, with the mean of the parents' predictions as teacher.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from otfuse.errors import DivergedError, TrainError
from otfuse.fusion.choose import searched
from otfuse.program.state import copied
from otfuse.train.finetune import batch_rows
from otfuse.train.options import FinetuneOptions
from otfuse.train.progress import tidy
from otfuse.train.worker import Worker, fill, start, stored_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from otfuse.program.state import Slot
    from otfuse.train.lesson import Lesson
    from otfuse.train.progress import Progress

    OnStep = Callable[[int, int, float], object]

RATES = (10**-3.5, 1e-3)  # learning rates that are tried first; further ones half a decade beyond the better
_LIMITS = (1e-6, 2e-2)
_BETAS = (0.9, 0.98)  # of AdamW: runs are short, and the second moment must follow
_NEAR = 0.25  # of the best trial's divergence: a larger rate that comes so near will be as good in a longer run
_WORTH_TRIALS = 30  # steps; with fewer left by a budget the last of the rates is taken untried
_TRIAL = 0.2  # of the steps, a trial's; a twentieth chose rates ten times too small (docs/experiments.md)
_LONGEST = 100  # steps of a trial
_LOOKS = 10  # how often the held-back inputs are looked at; the best weights seen are the result
_TRAINING = 0.8  # of the time that is left beside trials; looks take the rest at most
_JUDGED_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Course:
    """How to distil: ``steps`` of ``batch_size``, or as many as ``seconds`` leave time for (steps None).

    ``learning_rate`` None: chosen on the held-back inputs. The same steps and seed give the same result.
    ``examples`` is kept with the progress: how many inputs a caller chose, where a clock decided that.
    """

    steps: int | None = 500
    batch_size: int = 32
    learning_rate: float | None = None
    seconds: float = 0.0
    seed: int = 0
    device: str | None = None
    save_every: int = 100
    examples: int = 0
    rates: tuple[float, ...] = RATES

    def options(self, steps: int, learning_rate: float) -> FinetuneOptions:
        """AdamW without weight decay, gradients clipped at norm 1, a tenth of the steps to warm up, then a cosine."""
        chosen = {"steps": steps, "learning_rate": learning_rate, "batch_size": self.batch_size, "seed": self.seed}
        return FinetuneOptions(weight_decay=0.0, device=self.device, save_every=self.save_every, **chosen)


@dataclass(frozen=True, slots=True, eq=False)
class Distilled:
    """The best weights seen, by first stored name, and how they came about.

    ``before`` and ``after`` are the divergences from the targets on the held-back inputs, of the start and of what is given
    back, found at step ``best``; ``rates``: learning rates that were tried, with the divergence after some steps.
    """

    weights: dict[str, Tensor]
    steps: int
    best: int
    learning_rate: float
    rates: Mapping[float, float]
    before: float
    after: float
    resumed_from: int = 0
    is_main: bool = True


def distil(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    lesson: Lesson,
    learned: NDArray[np.int64],
    held: NDArray[np.int64],
    course: Course,
    *,
    caches: Iterable[Slot] = (),
    progress: Progress | None = None,
    run: Mapping[str, Any] | None = None,
    on_step: OnStep | None = None,
    fresh: bool = True,
) -> Distilled:
    """Trains a copy of ``model`` (itself, unless ``fresh``) that begins with ``weights`` on the examples ``learned``, judged on those ``held`` back.

    Modules are as in evaluation: no dropout, no new statistics of batches. Under ``accelerate launch`` the processes share
    every batch, and the steps are those of one process up to rounding. With ``progress`` a killed run goes on, to the same
    weights, if ``run`` (all that decides its result) is the same. Raises TrainError if the loss is not finite.
    """
    began, own = time.perf_counter(), dict(run or {})
    accelerator = start(course.options(1, course.rates[0]))
    kept = progress if accelerator.is_main_process else None
    options = course.options(1, course.rates[0])
    copy = _begun(copied(model, caches) if fresh else model, weights)
    worker = Worker(copy, lesson, options, accelerator, own=True, training=False, betas=_BETAS)
    training = _Training(worker, weights, lesson, learned, held, course)
    saved = None if progress is None else progress.load(own)
    accelerator.wait_for_everyone()  # nobody writes while another still reads
    with tidy(kept):
        if saved is None and kept is not None:
            kept.open()
        made = training.trained(saved or training.planned(began), kept, own, on_step)
    worker.finish()
    return made


class _Training:
    """One distillation on this process: one worker, put back to the start between trials."""

    def __init__(
        self,
        worker: Worker,
        weights: Mapping[str, Tensor],
        lesson: Lesson,
        learned: NDArray[np.int64],
        held: NDArray[np.int64],
        course: Course,
    ) -> None:
        self.worker, self.weights, self.lesson, self.course = worker, weights, lesson, course
        self.learned, self.held, self.accelerator = learned, held, worker.accelerator

    def planned(self, began: float) -> dict[str, Any]:
        """Steps and learning rate of a run that begins, and the divergence of its start."""
        before = self.judged()
        if not math.isfinite(before):
            raise TrainError(
                "distilling cannot begin: what the fused model predicts for the held-back inputs is not finite; take another "
                "start (distilled.start), or check the parents' weights"
            )
        steps, every, choose = self.course.steps, 0, True
        if steps is None:
            steps, every, choose = self.affordable(began)
        given, tried = self.course.learning_rate, dict[float, float]()
        if given is None and steps and choose:
            _, tried = searched(lambda rate: self.trial(rate, _trial_steps(steps)), self.course.rates, 10**0.5, _LIMITS)
            given = _largest(tried)
        rates: dict[str, Any] = {
            "rates": list(tried),
            "figures": list(tried.values()),
            "rate": given or self.course.rates[-1],
        }
        rates |= {"examples": self.course.examples, "every": every or _every(steps)}
        return {"step": 0, "steps": steps, "before": before, "best_step": 0, "best_figure": before, "best": {}, **rates}

    def trained(
        self, at: dict[str, Any], progress: Progress | None, run: dict[str, Any], on_step: OnStep | None
    ) -> Distilled:
        """All steps that are left after the state ``at``; what is found is kept in ``progress``."""
        steps, rate, done = at["steps"], at["rate"], at["step"]
        tried = dict(zip(at["rates"], at["figures"], strict=True))
        made = Distilled(
            dict(self.weights),
            steps,
            0,
            rate,
            tried,
            at["before"],
            at["before"],
            done,
            self.accelerator.is_main_process,
        )
        if not steps:
            return made
        options, every = self.course.options(steps, rate), at["every"]
        if "model" in at:
            self.worker.restore(at)
        elif progress is not None:
            progress.save(run, {**at, **self.worker.state()})
        for step in range(done, steps):
            loss = self.update(step, options.learning_rate_at(step, steps))
            if (step + 1) % every == 0 or step + 1 == steps:
                figure = self.judged()
                if figure < at["best_figure"] - self.lesson.rounding:
                    at |= {"best_figure": figure, "best_step": step + 1, "best": self.taken()}
            if progress is not None and ((step + 1) % options.save_every == 0 or step + 1 == steps):
                progress.save(run, {**at, "step": step + 1, **self.worker.state()})
            if on_step is not None and self.accelerator.is_main_process:
                on_step(step + 1, steps, loss)
        best = {name: at["best"].get(name, tensor).to(tensor.device) for name, tensor in self.weights.items()}
        return replace(made, weights=best, best=at["best_step"], after=at["best_figure"])

    def update(self, step: int, rate: float) -> float:
        """One step; its loss."""
        rows, _ = batch_rows(step, len(self.learned), self.worker.options)
        return self.worker.update(self.lesson.batch(self.learned[rows]), step, rate)

    @torch.no_grad()
    def judged(self) -> float:
        """Mean divergence on the held-back inputs, the same number on every process."""
        total, count = 0.0, 0
        for first in range(0, len(self.held), _JUDGED_AT_ONCE):
            batch = self.lesson.batch(self.held[first : first + _JUDGED_AT_ONCE])
            total += float(self.lesson.loss(self.worker.model, self.worker.model, batch, self.accelerator.device))
            count += batch.count
        return self.agreed(total / max(1, count))

    def trial(self, rate: float, steps: int) -> float:
        """The divergence after some steps at that learning rate, from the start; infinite where they diverge."""
        options = self.course.options(steps, rate)
        try:
            for step in range(steps):
                self.update(step, options.learning_rate_at(step, steps))
            figure = self.judged()
        except DivergedError:
            figure = math.inf
        self.worker.begin_anew(self.weights)
        return figure if math.isfinite(figure) else math.inf

    def affordable(self, began: float) -> tuple[int, int, bool]:
        """Steps that the seconds leave time for, how many lie between two looks, and whether rates are tried.

        Found by the time of first ones. Looks take a fifth at most; where trials would leave few steps, there are none.
        """
        self.update(0, self.course.rates[0])  # the first is slower
        times = []
        for number in range(1, 4):
            at = time.perf_counter()
            self.update(number, self.course.rates[0])
            times.append(time.perf_counter() - at)
        at = time.perf_counter()
        self.judged()
        self.worker.begin_anew(self.weights)
        step, look, now = sorted(times)[1], time.perf_counter() - at, time.perf_counter()
        left, trials = self.course.seconds - (now - began), len(self.course.rates) + 2
        tried = _beside(trials, (left - trials * look) / step)
        choose = self.course.learning_rate is None and self.agreed(tried) >= _WORTH_TRIALS
        count = round(self.agreed(tried if choose else max(0.0, left * _TRAINING / step)))
        return count, round(self.agreed(max(_every(count), 4 * look / step, 1.0))), choose

    def agreed(self, number: float) -> float:
        """The mean over processes: decisions must not differ by rounding or by clocks."""
        mean = torch.tensor(number, dtype=torch.float64).to(self.accelerator.device, torch.float32)
        if self.accelerator.num_processes == 1:
            return number
        return float(self.accelerator.reduce(mean, reduction="mean"))

    def taken(self) -> dict[str, Tensor]:
        """The present weights by first stored name, in the types of the start."""
        tensors = stored_of(self.worker.model)
        return {n: tensors[n].detach().to("cpu", own.dtype, copy=True) for n, own in self.weights.items()}


def _begun(made: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The model with these weights. What its class keeps fixed stays fixed, unless that is all."""
    if not any(p.requires_grad for p in made.parameters()):
        made.requires_grad_(requires_grad=True)
    fill(made, weights)
    return made


def _every(steps: int) -> int:
    return max(1, round(steps / _LOOKS))


def _trial_steps(steps: int) -> int:
    return min(_LONGEST, max(3, round(steps * _TRIAL)))


def _beside(trials: int, steps: float) -> float:
    """How many of the steps that there is time for are left to train, beside trials."""
    left = _TRAINING * steps / (1 + trials * _TRIAL * _TRAINING)
    return max(0.0, left if left * _TRIAL <= _LONGEST else _TRAINING * (steps - trials * _LONGEST))


def _largest(tried: Mapping[float, float]) -> float:
    """The largest rate whose trial comes near the best one: shorter runs favour small rates (arXiv 1803.02021)."""
    best = min(tried.values())
    if not math.isfinite(best):
        return min(tried)
    return max(rate for rate, figure in tried.items() if figure - best <= _NEAR * abs(best))
