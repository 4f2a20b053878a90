"""The whole story on one screen: checkpoint -> program -> flow graph -> maps -> fused weights -> checkpoint -> report."""

from __future__ import annotations

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
from otfuse.evaluate.run import find_device
from otfuse.flow.proof.gate import Verification, verify_graph
from otfuse.fusion.job import Job
from otfuse.fusion.sides import traced
from otfuse.io import given, writer
from otfuse.io.card import fusion_json, model_card
from otfuse.measure.clock import Announcing as _Announcing
from otfuse.measure.clock import peak_mib
from otfuse.program.state import copied

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otfuse.core.alignment import Alignment
    from otfuse.core.dataset import Dataset
    from otfuse.core.graph import FlowGraph
    from otfuse.core.recipe import Recipe
    from otfuse.measure.clock import Progress
    from otfuse.program.inputs import Inputs

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
    """The gate (docs/method.md, 4): ``.error`` and ``.control`` are relative output changes, ``.graph`` the flow graph."""
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
        loaded = given.load(models, device=device)
        inputs = given.dataset(data, loaded) if data is not None else None
    job = Job(loaded.modules, loaded.names, checked, inputs, example_inputs, batch_size, clock, progress)
    tensors, alignments, gate = job.run(verify=verify)
    with clock.stage("assemble"):
        model = assembled(copied(loaded.modules[0], job.caches), tensors)
    return Fused(model, _report(job, loaded, alignments, gate), tuple(a.maps for a in alignments))


def _report(job: Job, loaded: given.Loaded, alignments: Sequence[Alignment], gate: dict[str, float] | None) -> Report:
    solved = tuple(replace(s, source=n) for n, a in zip(loaded.names[1:], alignments, strict=True) for s in a.solved)
    stages, notes = tuple(job.clock.stages), job.notes(alignments)
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
class Result:
    """What ``otfuse fuse`` did: its report and the folder written.

    On a dry run it has neither of them, but its plan, and the names of the spaces by id.
    """

    report: Report | None
    plan: Plan | None
    out: Path | None
    names: Mapping[str, str] = field(default_factory=dict)


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
        loaded = given.load(
            [anchor, *sources], device=device, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
        )
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
