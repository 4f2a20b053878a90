"""A scheme of several stages: a start in memory, then stage after stage, compared on held-back inputs, then everything written."""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from otfuse.calibrate.between import Between
from otfuse.core.report import Compared
from otfuse.errors import DivergedError, TrainError
from otfuse.evaluate.unlabelled import unlabelled
from otfuse.fusion.job import UNEQUAL, Job
from otfuse.fusion.plain import plain_pieces
from otfuse.measure.probe import probe_batches
from otfuse.measure.rates import rates
from otfuse.measure.room import require_room
from otfuse.measure.targets import apart, require_variety, split, together
from otfuse.program.run import Runner
from otfuse.stages.guard import Guard
from otfuse.stages.order import TRAINED, order, without_plain
from otfuse.stages.plan import stages_mib, stages_plan
from otfuse.stages.works import STAGES, course
from otfuse.train.progress import Progress as Kept
from otfuse.train.progress import hash_of_weights
from otfuse.train.refine import Carried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from otfuse.align.plan import Plan
    from otfuse.core.alignment import Alignment
    from otfuse.fusion.job import Request, Sink
    from otfuse.fusion.sides import Parent
    from otfuse.measure.probe import Side
    from otfuse.measure.targets import Targets
    from otfuse.program.state import Slot

    Progress = Callable[[str, int, int], None]
    Weights = dict[str, torch.Tensor]

FEW = 100  # inputs below which the report says that more would help


class Table:
    """Takes fused tensors into memory, in the type that the anchor is computed in, by first stored name."""

    def __init__(self, anchor: Parent) -> None:
        self._anchor = anchor
        self.tensors: Weights = {}

    def __call__(self, name: str, blocks: Iterable[torch.Tensor]) -> None:
        """All values of one tensor, flat and in order."""
        weights, made = self._anchor.weights, [block.reshape(-1) for block in blocks]
        whole = torch.cat(made) if made else torch.empty(0)
        self.tensors[name] = whole.to(weights.dtype(name), copy=True).reshape(weights.shape(name))


class Staged:
    """One fusion by such a scheme, asked as :class:`otfuse.fusion.job.Job` is.

    ``inputs`` are the data as the anchor is asked for predictions, ``learned`` and ``held`` the numbers of its examples that
    stages learn from and that only judge, ``targets`` what the parents predict together on all of them (where no stage trains,
    on those that judge alone).
    """

    targets: Targets

    def __init__(self, asked: Request, *, tokens: Mapping[str, Any], device: str, out: Path | None) -> None:
        parents, recipe, data = asked.parents, asked.recipe, asked.data
        self.parents, self.recipe, self.clock, self.device, self.tell = parents, recipe, asked.clock, device, asked.tell
        self.kept = None if out is None else Kept.beside(out)
        self._began, self._order, self._notes = time.perf_counter(), order(recipe), list[str]()
        self._given, self._places = data, None
        self._print: dict[str, Any] | None = None
        self.in_basis: Sequence[Mapping[str, torch.Tensor]] | None = None  # the parents as a stage moved them
        if data is not None:
            data, self._places, told = unlabelled(parents[0].module, data, seed=recipe.seed, **tokens)
            self._notes += told
            self.inputs = data
        if _differ(parents) and (aligned := without_plain(self._order, recipe)) is not self._order:
            self._order = aligned
            self._notes.append(f"sizes differ, so there is no plain average: begun from recipe {aligned.name}")
        begin = self._order.start or recipe.model_copy(update={"scheme": "average"})
        own = replace(asked, recipe=begin, data=data)
        self._job = Job(own, looks=data is not None, yields=recipe.scheme == "auto")
        self.weights, self.compared, self.compared_by = self._job.weights, tuple[Compared, ...](), ""

    @property
    def caches(self) -> tuple[Slot, ...]:
        """What the anchor's modules keep of what they computed."""
        return self._job.caches

    @property
    def sides(self) -> Sequence[Side]:
        """Every parent traced, anchor first."""
        return self._job.sides

    def note(self, *notes: str) -> None:
        """For the report."""
        self._notes += notes

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._began

    def run(self, sink: Sink, *, verify: bool, keep: bool = False) -> tuple[list[Alignment], dict[str, float] | None]:
        """As :meth:`Job.run`: the start, the stages, then every tensor into ``sink``."""
        require_variety(self.inputs, f"recipe {self.recipe.scheme}")
        self._job.pairs()
        size, helps = self.inputs.size, "a smaller distilled.batch_size"
        needed = stages_mib(self.sides[0], self._order, self.recipe, size, len(self.parents))
        require_room(needed, what=f"recipe {self.recipe.scheme}", helps=f"{helps}, or a machine with more")
        began = time.perf_counter()
        weights, alignments, gate = self._start(verify=verify, keep=keep)
        seconds = time.perf_counter() - began
        with self._aimed():
            weights = self._staged(weights, seconds)
        for name, tensor in weights.items():
            sink(name, [tensor.reshape(-1)])
        return alignments, gate

    def finish(self) -> None:
        """The result is written: nothing is left to go on from."""
        if self.kept is not None:
            self.kept.remove()

    def plan(self, *, verify: bool) -> Plan:
        """What would be done; nothing is solved."""
        return stages_plan(
            self._job, self._order, self.recipe, 0 if self._given is None else self._given.size, rates(), verify=verify
        )

    def space_names(self) -> dict[str, str]:
        """Names of the anchor's spaces by id, once it is traced."""
        return self._job.space_names()

    def notes(self, alignments: Sequence[Alignment]) -> tuple[str, ...]:
        """What the report says beside figures."""
        return (*self._notes, *self._job.notes(alignments))

    @property
    def moved(self) -> bool:
        """Whether the start carried sources by maps other than the identity, so that the plain average is another model."""
        return self._job.aligner is not None and not self._job.aligner.shared

    def plain(self) -> Weights:
        """The plain average of all parents, by first stored name."""
        table = Table(self.parents[0])
        for name, blocks in plain_pieces(self.parents, self.weights):
            table(name, blocks)
        return table.tensors

    def departure(self, weights: Mapping[str, torch.Tensor]) -> float:
        """Divergence from the parents' mean prediction on the held-back inputs."""
        return float(apart(self.sides[0], weights, self._judged, self.targets, self._judges).divergence.mean())

    @property
    def unequal(self) -> bool:
        """Whether the start joined models of other widths."""
        return self._job.aligner is not None and self._job.aligner.unequal

    def parents_in_basis(self) -> Sequence[Side | Between]:
        """All parents in the units of the fused model: as aligning carried them, and refining moved them on.

        Where widths differ, each source as it is, with the maps that join it to the anchor.
        """
        aligner = self._job.aligner
        if aligner is None or (self.in_basis is None and not self.moved):
            return self.sides
        models = self.in_basis or self.carried().models
        found: list[Side | Between] = [replace(side, weights=own) for side, own in zip(self.sides, models, strict=True)]
        for k, side in enumerate(self.sides[1:] if aligner.unequal else ()):
            own, joined = aligner.joins(k)
            found[k + 1] = Between(replace(side, weights=own), models[k + 1], joined)
        return found

    def carried(self) -> Carried:
        """What the scheme `aligned` averages, and the groups that are left to move in."""
        aligner = self._job.aligner
        assert aligner is not None  # the start was aligned
        return Carried(*aligner.carried(), tuple(self.weights))

    def learning(self, stage: str, verb: str) -> dict[str, Any]:
        """What every stage of gradient steps is given: where it keeps its progress, and whom it tells of it."""
        kept = None if self.kept is None else self.kept.of(stage)
        run = None if kept is None else self.fingerprint()
        return {"progress": kept, "run": run, "on_step": lambda step, steps, _loss: self.tell(verb, step, steps)}

    def fingerprint(self) -> dict[str, Any]:
        """All that decides the result."""
        if self._print is None:
            self._print = self._fingerprint()
        return self._print

    def _fingerprint(self) -> dict[str, Any]:
        parents = [hash_of_weights((n, p.weights[n]) for n in sorted(p.weights.alike)) for p in self.parents]
        recipe = self.recipe.model_dump(mode="json")
        assert self._given is not None  # there are inputs where something is learned
        return {"parents": parents, "data": self._given.digest(), "weights": list(self.weights), "recipe": recipe}

    def _start(self, *, verify: bool, keep: bool) -> tuple[Weights, list[Alignment], dict[str, float] | None]:
        """The weights that the first stage is given; what no prediction reads is the anchor's."""
        anchor, table = self.parents[0], Table(self.parents[0])
        alignments, gate = list[Any](), None
        if self._order.start is not None:
            alignments, gate = self._job.run(table, verify=verify, keep=keep)
        graph = self.sides[0].graph
        own = {graph.ties.get(name, name) for name in graph.unread}
        for name in anchor.weights.alike:
            if name not in table.tensors or name in own:
                table.tensors[name] = anchor.weights[name].clone()
        return table.tensors, alignments, gate

    def _aimed(self) -> Targets:
        """Which inputs are learned from and which held back, and what the parents predict together.

        On all of them where a stage trains, else on those that judge.
        """
        share = self.recipe.auto.held_back if self.recipe.scheme == "auto" else self.recipe.distilled.held_back
        self._draw(share)
        size = self.inputs.size
        self.learned, self.held = split(size, share, self.recipe.seed)
        if size < FEW:
            self.note(f"{size} inputs to learn from: {FEW} or more would help, and tell better what went wrong")
        self._judged, judges, places = self.inputs, self.held, self._places
        if TRAINED.isdisjoint(self._order.stages):
            self._judged, judges = self.inputs.take(self.held), np.arange(len(self.held))
            places = None if places is None else places[self.held]
        self._judges = judges
        names = [parent.name for parent in self.parents]
        with self.clock.stage("targets"):
            tell = partial(self.tell, "targets")
            self.targets = together(self.sides, self.weights, self._judged, places, names=names, tell=tell)
        return self.targets

    def _draw(self, share: float) -> None:
        """No more inputs than can be learned from: a part of them, drawn by the seed."""
        if self._order.stages[-1] != "distilled":
            return
        planned, size, most = course(self), self.inputs.size, self.inputs.size
        kept = None if self.kept is None else self.kept.of("distilled")
        if planned.steps is not None:
            most = math.ceil(planned.steps * planned.batch_size / (1 - share))
        elif kept is not None and kept.saved:
            most = int((kept.load(self.fingerprint()) or {}).get("examples", size))
        elif "WORLD_SIZE" not in os.environ:  # processes must not draw by clocks of their own
            most = self._affordable(planned.seconds)
        most = max(FEW, most)
        if most >= size:
            return
        numbers = np.sort(np.random.default_rng([self.recipe.seed, size]).permutation(size)[:most])
        self.inputs = self.inputs.take(numbers)
        self._places = None if self._places is None else self._places[numbers]
        self.note(f"{most} of {size} inputs were drawn: there is no time or step for more")

    def _affordable(self, seconds: float) -> int:
        """How many inputs the parents predict in their part of the seconds, by the time of one batch (the first of two is slower)."""
        (part, batch), parents = next(probe_batches(self.sides[0].program, self.inputs)), len(self.sides)
        for _ in range(2):
            began = time.perf_counter()
            for side in self.sides:
                Runner(side.program)(side.weights, batch)
        return int(seconds * parents / (parents + 3) / (time.perf_counter() - began) * part.size)

    def _staged(self, weights: Weights, seconds: float) -> Weights:
        names = [parent.name for parent in self.parents]
        name = UNEQUAL if self._job.yielded else self._order.name
        with self.clock.stage("judge"):
            guard = Guard(self.sides, names, self._judged, self.targets, self._judges)
            guard.stage(name, weights, seconds, first=True, undo=False)
        if not torch.isfinite(torch.tensor(guard.rows[-1].figure)):
            raise TrainError(
                f"what the start ({name}) predicts for the held-back inputs is not finite; take another start, or check "
                "the parents' weights"
            )
        undo = self.recipe.scheme == "auto"
        for name in self._order.stages:
            began = time.perf_counter()
            try:
                made = STAGES[name](self, weights)
            except DivergedError as error:
                if not undo:
                    raise
                self.note(f"{name} was undone: {error}")
                guard.failed(name, time.perf_counter() - began)
                continue
            if made is None:
                continue
            seconds = time.perf_counter() - began
            with self.clock.stage("judge"):
                kept = guard.stage(name, made, seconds, first=False, undo=undo)
            weights = made if kept else weights
        self.note(*guard.notes())
        self.compared, self.compared_by = tuple(guard.rows), guard.by
        return weights


def _differ(parents: Sequence[Parent]) -> bool:
    """Whether tensors of one name have other shapes in one model than in another."""
    ours, *others = (parent.weights for parent in parents)
    return any(name in own and own.shape(name) != ours.shape(name) for own in others for name in ours)
