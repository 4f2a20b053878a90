"""The whole story on one screen: checkpoint -> program -> flow graph -> maps -> fused weights -> checkpoint -> report."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from otfuse.align.plan import Plan, plan
from otfuse.align.scheme import require_data
from otfuse.core import recipe as recipes
from otfuse.core.report import Report, Stage
from otfuse.evaluate.metrics import evaluate_together
from otfuse.evaluate.run import find_device
from otfuse.flow.verify import Verification, verify_graph
from otfuse.fusion.job import Job
from otfuse.fusion.sides import traced
from otfuse.io import given, writer
from otfuse.io.card import fusion_json, model_card
from otfuse.measure.clock import Clock, peak_mib
from otfuse.program.state import copied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from otfuse.core.alignment import Alignment
    from otfuse.core.dataset import Dataset
    from otfuse.core.graph import FlowGraph
    from otfuse.core.recipe import Recipe
    from otfuse.evaluate.metrics import Score
    from otfuse.program.inputs import Inputs

    Progress = Callable[[str, int, int], None]

DEFAULT_RECIPE = "otfusion-wts"  # needs no data; `aligned` takes its place when it exists


@dataclass(frozen=True, slots=True, eq=False)
class Fused:
    """What :func:`fuse` made.

    ``model``: a module of the anchor's class; ``maps``: by space id, of the first source (``all_maps``: of every
    source); ``report``: what was done and what it cost.
    """

    model: nn.Module
    report: Report
    all_maps: tuple[Mapping[str, torch.Tensor], ...] = ()

    @property
    def maps(self) -> Mapping[str, torch.Tensor]:
        """Maps of the first source by space id, ``[anchor, source]``."""
        return self.all_maps[0] if self.all_maps else {}


def trace(model: nn.Module | str | Path, example_inputs: Inputs | None = None) -> FlowGraph:
    """The flow graph of a module or checkpoint; inputs are made from a Hugging Face config when None."""
    return traced(given.module(model), example_inputs).graph


def verify(model: nn.Module | str | Path, example_inputs: Inputs | None = None, seed: int = 0) -> Verification:
    """The gate (design.md 3.1): ``.error`` and ``.control`` are relative output changes, ``.graph`` the flow graph."""
    module = given.module(model)
    side = traced(module, example_inputs)
    return verify_graph(module, side.program, side.graph, seed=seed)


def fuse(
    models: Sequence[nn.Module | str | Path],
    recipe: str | Path | Mapping[str, Any] | Recipe = DEFAULT_RECIPE,
    data: str | Path | Mapping[str, Any] | Dataset | None = None,
    example_inputs: Inputs | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int | None = None,
    *,
    verify: bool = True,
    batch_size: int = 32,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Fused:
    """One model from several, anchor first.

    ``models`` are modules or checkpoint folders (never changed); ``data`` a path or a dict of arrays named as the
    model's inputs, unlabelled; ``options`` dotted keys laid over the recipe (``{"otfusion.solver": "emd"}``).
    Raises a subclass of OtfuseError with one sentence for everything that the caller can mend.
    """
    clock = _Announcing(progress)
    checked = recipes.read(recipe, dict(options or {}) | ({} if seed is None else {"seed": seed}))
    require_data(checked, data)
    with clock.stage("load"):
        find_device(device)
        loaded = given.load(models, device=device, to_fuse=True)
        inputs = given.dataset(data, loaded) if data is not None else None
    job = Job(loaded.modules, loaded.names, checked, inputs, example_inputs, batch_size, clock, progress)
    tensors, alignments, gate = job.run(verify=verify)
    with clock.stage("assemble"):
        model = assembled(copied(loaded.modules[0], job.caches), tensors)
    return Fused(model, _report(job, loaded, alignments, gate), tuple(a.maps for a in alignments))


def _report(job: Job, loaded: given.Loaded, alignments: Sequence[Alignment], gate: dict[str, float] | None) -> Report:
    solved = tuple(replace(s, source=n) for n, a in zip(loaded.names[1:], alignments, strict=True) for s in a.solved)
    stages, notes = tuple(job.clock.stages), (*loaded.notes, *job.notes(alignments))
    return Report(job.recipe, stages, solved, loaded.infos(), gate, notes, tuple(job.weights))


def _card(report: Report) -> str:
    anchor, *sources = report.sources
    return model_card(
        anchor=anchor, sources=sources, recipe_yaml=report.recipe.to_yaml(), gate=report.gate, weights=report.weights
    )


def _figures(report: Report, began: float) -> str:
    """fusion.json, the last file written: with the time that writing has taken by then."""
    written = Stage("write", time.perf_counter() - began, peak_mib())
    return fusion_json(replace(report, stages=(*report.stages, written)))


def assembled(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """The model given, with these tensors in its own types."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor.to(own[name].dtype))
    return model.eval()


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """A flow graph, and the figures of the gate if they were asked for."""

    graph: FlowGraph
    verification: Verification | None


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What ``otfuse fuse`` did: its report and the folder written.

    On a dry run it has neither of them, but its plan, and the names of the spaces by id.
    """

    report: Report | None
    plan: Plan | None
    out: Path | None
    names: Mapping[str, str] = field(default_factory=dict)


class _Announcing(Clock):
    """A clock that tells every stage as it begins and ends."""

    def __init__(self, progress: Progress | None) -> None:
        super().__init__()
        self._progress = progress or (lambda _stage, _done, _total: None)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._progress(name, 0, 1)
        with super().stage(name):
            yield
        self._progress(name, 1, 1)


def inspect(
    model: str,
    *,
    verify: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Inspection:
    """The flow graph of a checkpoint, and the gate on it."""
    clock = _Announcing(progress)
    with clock.stage("load"):
        loaded = given.load([model], allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    with clock.stage("trace"):
        side = traced(loaded.modules[0], None)
    if not verify:
        return Inspection(side.graph, None)
    with clock.stage("verify"):
        return Inspection(side.graph, verify_graph(loaded.modules[0], side.program, side.graph, seed=seed))


def fuse_checkpoints(
    anchor: str,
    sources: Sequence[str],
    out: Path | None,
    *,
    recipe: Recipe,
    data: str | None = None,
    device: str = "cpu",
    verify: bool = True,
    dtype: str | None = None,
    shard_size: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Result:
    """From checkpoint folders to a checkpoint folder; ``out`` None plans and writes nothing."""
    clock, kind = _Announcing(progress), writer.floating(dtype)
    recipe.weights_for(1 + len(sources))  # what is wrong with the recipe is told before anything is read
    if out is not None:
        require_data(recipe, data)
        writer.check_target(out)
        writer.check_shard_size(shard_size)
    with clock.stage("load"):
        find_device(device)
        allowed = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
        loaded = given.load([anchor, *sources], device=device, to_fuse=True, **allowed)
        inputs = given.dataset(data, loaded) if data is not None else None
    job = Job(loaded.modules, loaded.names, recipe, inputs, None, batch_size, clock, progress)
    if out is None:
        return _planned(job)
    tensors, alignments, gate = job.run(verify=verify)
    with clock.stage("write"):
        began = time.perf_counter()
        model = assembled(loaded.modules[0], tensors)
        report = _report(job, loaded, alignments, gate)
        files = {"README.md": lambda: _card(report), "fusion.json": lambda: _figures(report, began)}
        writer.write_checkpoint(out, model, loaded.checkpoints[0], dtype=kind, shard_size=shard_size, files=files)
    return Result(replace(report, stages=tuple(clock.stages)), None, out)


def _planned(job: Job) -> Result:
    pairs = job.pairs()
    names = {space.id: space.name for space in pairs[0].anchor.graph.spaces}
    return Result(None, plan(pairs, job.recipe), None, names)


def evaluate_checkpoints(
    models: Sequence[str],
    data: str,
    *,
    ensemble: bool = False,
    batch_size: int = 32,
    device: str = "cpu",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Scores of models and, last, of their ensemble."""
    tell = progress or (lambda _stage, _done, _total: None)
    find_device(device)
    with _Announcing(tell).stage("load"):
        loaded = given.load(models, device=device, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
        asked = given.asked(data, loaded)
    rows = []
    for done, (name, one) in enumerate(zip(loaded.names, asked, strict=True)):
        tell("evaluate", done, len(models))
        with given.told_of(name, data):
            score = evaluate_together([one], batch_size=batch_size, device=device)
        rows.append({"model": name} | score_row(score))
        tell("evaluate", done + 1, len(models))
    if ensemble:
        score = evaluate_together(asked, batch_size=batch_size, device=device)
        rows.append({"model": "ensemble"} | score_row(score))
    return rows


def finetune_checkpoint(
    model: str,
    data: str,
    out: Path,
    options: Mapping[str, Any],
    *,
    progress: Progress | None = None,
    restart: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Train a checkpoint further and write the result; a run that was cut off goes on, wherever that was."""
    from otfuse.train import progress as kept
    from otfuse.train.finetune import finetune
    from otfuse.train.options import FinetuneOptions

    checked = FinetuneOptions(**options)
    if checked.device is not None:
        find_device(checked.device)
    written = not restart and kept.Progress.beside(out).saved and (out / "config.json").is_file()
    if not written:  # else the run was killed between writing its result and its last act
        writer.check_target(out)
    tell = progress or (lambda _stage, _done, _total: None)
    with _Announcing(tell).stage("load"):
        loaded = given.load([model], allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
        examples = given.dataset(data, loaded)
    with given.told_of(model, data):
        trained = finetune(
            loaded.modules[0],
            examples,
            options=checked,
            out=out,
            on_step=lambda step, steps, _loss: tell("finetune", step, steps),
            restart=restart,
            **given.special_tokens(loaded),
        )
    if trained.is_main and not (written and writer.holds(out, trained.model)):
        writer.write_checkpoint(out, trained.model, loaded.checkpoints[0])
    trained.finish()
    return {"model": model, "out": str(out), "steps": trained.steps, "examples": trained.examples, "loss": trained.loss}


def score_row(score: Score) -> dict[str, Any]:
    """A score as a row of ``eval --json``: accuracy or perplexity, whichever the task has."""
    row: dict[str, Any] = {"examples": score.examples, "loss": score.loss}
    if score.accuracy is not None:
        return row | {"accuracy": score.accuracy}
    return row | {"perplexity": score.perplexity}
