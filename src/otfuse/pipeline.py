"""The whole story on one screen: checkpoint -> program -> flow graph -> maps -> fused weights -> checkpoint -> report."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from otfuse.core import recipe as recipes
from otfuse.core.report import Report, Stage
from otfuse.fusion.into import IntoModule
from otfuse.fusion.job import Request
from otfuse.io import card, writer
from otfuse.io.fused import fused_files
from otfuse.io.parents import Family
from otfuse.measure.clock import Announcing, peak_mib
from otfuse.stages.begin import begun, is_first, kept_beside
from otfuse.stages.order import require_data

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from otfuse.align.plan import Plan
    from otfuse.core.alignment import Alignment
    from otfuse.core.dataset import Dataset
    from otfuse.core.graph import FlowGraph
    from otfuse.core.recipe import Recipe
    from otfuse.flow.proof.gate import Verification
    from otfuse.fusion.job import Job
    from otfuse.measure.clock import Progress
    from otfuse.program.inputs import Inputs
    from otfuse.stages.staged import Staged

DEFAULT_RECIPE = "auto"  # what it does with inputs and without stands in stages/order.py


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


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What ``otfuse fuse`` did: its report and the folder written; on a dry run its plan, and names of spaces by id."""

    report: Report | None
    plan: Plan | None
    out: Path | None
    names: Mapping[str, str] = field(default_factory=dict)


def trace(
    model: nn.Module | str | Path, example_inputs: Inputs | None = None, groups: str = "permutation"
) -> FlowGraph:
    """The flow graph of a module or checkpoint; inputs are made from a Hugging Face config when None.

    With ``groups="full"`` every space has the largest exact group of the model's canonical form (docs/method.md, 4.3).
    """
    from otfuse.flow.groups.find import symmetries, with_groups
    from otfuse.fusion.sides import traced

    with Family([model], to_fuse=False) as family:
        side = traced(family.anchor, example_inputs)
        return side.graph if groups == "permutation" else with_groups(side.graph, symmetries(side, groups=groups))


def equivalent(
    model: nn.Module | str | Path, example_inputs: Inputs | None = None, seed: int = 0, groups: str = "full"
) -> nn.Module:
    """A copy of the same class, config and type that computes the same from other weights.

    Random members of the group of every space are applied (``groups="permutation"``: permutations only), in float64, to the
    model's canonical form. Its outputs change by less than 1e-8, relative, where the model is in float64; in another type by
    what rounding its weights costs. The model given is not changed. To try a method of merging on: it should give the model back.
    """
    from otfuse.fusion.equal import write_equal

    with Family([model]) as family:
        return write_equal(model, family.anchor, example_inputs, seed, groups)


def verify(model: nn.Module | str | Path, example_inputs: Inputs | None = None, seed: int = 0) -> Verification:
    """The gate (docs/method.md, 4): ``.error`` and ``.control`` are relative output changes, ``.graph`` the flow graph."""
    from otfuse.flow.proof.gate import verify_graph
    from otfuse.fusion.sides import traced

    with Family([model], to_fuse=False) as family:
        side = traced(family.anchor, example_inputs)
        return verify_graph(family.anchor.module, side.program, side.graph, side.weights, seed=seed)


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
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Fused:
    """One model from several, anchor first.

    ``models`` are modules or checkpoint folders (never changed); ``data`` a path or a dict of arrays named as the
    model's inputs, unlabelled; ``options`` dotted keys laid over the recipe (``{"otfusion.solver": "emd"}``).
    Raises a subclass of OtfuseError with one sentence for everything that the caller can mend.
    """
    clock = Announcing(progress)
    checked = recipes.read(recipe, dict(options or {}) | ({} if seed is None else {"seed": seed}))
    require_data(checked, data)
    with clock.stage("load"):
        family = Family(models, device=device, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
        inputs = family.dataset(data)
    with family:
        asked = Request(family.parents, checked, inputs, example_inputs, batch_size, clock, progress)
        job = begun(asked, tokens=family.special_tokens, device=device)
        into = IntoModule(models[0], family.anchor, lambda: job.caches)
        alignments, gate = job.run(into, verify=verify, keep=True)
        return Fused(into.module, _report(job, family, alignments, gate), tuple(a.maps for a in alignments))


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
    restart: bool = False,
    progress: Progress | None = None,
) -> Result:
    """From checkpoint folders to a checkpoint folder; ``out`` None plans and writes nothing."""
    clock, kind, names = Announcing(progress), writer.floating(dtype), [anchor, *sources]
    recipe.weights_for(len(names))  # what is wrong with the recipe is told before anything is read
    if out is not None:
        require_data(recipe, data)
        _forget(out, restart=restart)
        writer.check_target(out, beside=names)
        writer.check_shard_size(shard_size)
    plain, allowed = recipe.scheme == "average", {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    with clock.stage("load"):
        family = Family(names, device=device, plain=plain, **allowed)
        inputs = family.dataset(data, used=not plain)
    with family:
        asked = Request(family.parents, recipe, inputs, None, batch_size, clock, progress)
        job = begun(asked, tokens=family.special_tokens, device=device, out=out)
        if out is None:
            return _planned(job, verify=verify)
        report = _written(job, family, out, verify=verify, dtype=kind, shard_size=shard_size)
    return Result(replace(report, stages=tuple(clock.stages)), None, out)


def _written(job: Job | Staged, family: Family, out: Path, *, verify: bool, **how: Any) -> Report:
    """The fusion, written to ``out`` by the first process (of several, under ``accelerate launch``, each computes all but training)."""
    with ExitStack() as stack:
        if not is_first():
            alignments, gate = job.run(lambda _name, _blocks: None, verify=verify)
            return _report(job, family, alignments, gate)
        sink = stack.enter_context(fused_files(out, family.file_anchor, **how))
        alignments, gate = job.run(sink, verify=verify)
        with job.clock.stage("write"):
            began, report = time.perf_counter(), _report(job, family, alignments, gate)
            sink.texts = {"README.md": lambda: _card(report), "fusion.json": lambda: _figures(report, began)}
            stack.close()
        job.finish()
    return report


def resumable(out: Path) -> bool:
    """Whether a run to ``out`` that was cut off can go on."""
    return kept_beside(out).begun


def _forget(out: Path, *, restart: bool) -> None:
    """What a killed run left beside ``out`` goes where it is not wanted, or where its result was written whole."""
    if restart or (out / "fusion.json").is_file():
        kept_beside(out).remove()


def _report(
    job: Job | Staged, family: Family, alignments: Sequence[Alignment], gate: dict[str, float] | None
) -> Report:
    names = [parent.name for parent in family.parents[1:]]
    solved = tuple(replace(s, source=n) for n, a in zip(names, alignments, strict=False) for s in a.solved)
    stages, notes = tuple(job.clock.stages), (*family.notes, *job.notes(alignments))
    weights, compared = tuple(job.weights), (job.compared, job.compared_by)
    return Report(job.recipe, stages, solved, family.infos(), gate, notes, weights, *compared)


def _card(report: Report) -> str:
    anchor, *sources = report.sources
    return card.model_card(
        anchor=anchor,
        sources=sources,
        recipe_yaml=report.recipe.to_yaml(),
        gate=report.gate,
        weights=report.weights,
        compared=report.compared,
        compared_by=report.compared_by,
    )


def _figures(report: Report, began: float) -> str:
    """fusion.json, the last file written: with the time that writing has taken by then."""
    written = Stage("write", time.perf_counter() - began, peak_mib())
    return card.fusion_json(replace(report, stages=(*report.stages, written)))


def _planned(job: Job | Staged, *, verify: bool) -> Result:
    made = job.plan(verify=verify)
    return Result(None, made, None, job.space_names())
