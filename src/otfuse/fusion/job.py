"""One fusion, stage by stage: program -> flow graph -> statistics -> maps -> fused tensors, each given on when it is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from otfuse.align.aligned import Aligner
from otfuse.align.aligned_walk import AlignedWalk
from otfuse.align.pair import Pair
from otfuse.align.plan import Task, needed_mib, plain_mib, plain_plan, plan
from otfuse.align.scheme import measure, set_aside, uses_data, walk
from otfuse.core import recipe as recipes
from otfuse.core.graph import unreached
from otfuse.core.report import Compared
from otfuse.errors import DataError, UnequalError, UsageError
from otfuse.fusion.apply import complete, fused, mixed
from otfuse.fusion.choose import best_regulariser
from otfuse.fusion.differences import differences
from otfuse.fusion.plain import at_once, plain_pieces
from otfuse.fusion.sides import check, sides
from otfuse.measure.probe import first_batch
from otfuse.measure.rates import rates
from otfuse.measure.room import require_room
from otfuse.program.weights import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import torch

    from otfuse.align.plan import Plan
    from otfuse.align.scheme import Measured, Walk
    from otfuse.core.alignment import Alignment, Carry
    from otfuse.core.dataset import Dataset
    from otfuse.core.recipe import Recipe
    from otfuse.fusion.sides import Parent
    from otfuse.measure.clock import Clock
    from otfuse.measure.probe import Side
    from otfuse.program.inputs import Inputs
    from otfuse.program.state import Slot
    from otfuse.program.weights import Weights

    Progress = Callable[[str, int, int], None]

UNEQUAL = "otfusion-wts"  # what takes models of any width


class Sink(Protocol):
    """Takes fused tensors in any order: a module, a table in memory, the files of a checkpoint."""

    def __call__(self, name: str, blocks: Iterable[torch.Tensor]) -> None:
        """All values of the tensor with that first name, flat and in order."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One fusion that is asked for: parents, anchor first, how, from which inputs, and who is told of it."""

    parents: Sequence[Parent]
    recipe: Recipe
    data: Dataset | None
    example_inputs: Inputs | None
    batch_size: int
    clock: Clock
    progress: Progress | None

    @property
    def tell(self) -> Progress:
        """Takes the stage, how much of it is done, of how much."""
        return self.progress or (lambda _stage, _done, _total: None)


class Job:
    """One fusion of several parents, anchor first."""

    def __init__(self, asked: Request, *, looks: bool | None = None, yields: bool = False) -> None:
        """``looks``: whether ``data`` are looked at, and so traced with; None: if the recipe needs them.

        ``yields``: scheme ``aligned`` gives way to the published method where models differ in size.
        """
        parents, recipe, data = asked.parents, asked.recipe, asked.data
        if len(parents) < 2:  # an anchor and a source
            raise UsageError("fuse needs at least two models: an anchor and one or more sources")
        self.parents, self.recipe, self.clock = parents, recipe, asked.clock
        self.data, self._examples, self._batch = data, asked.example_inputs, asked.batch_size
        self._progress = asked.tell
        self.weights = recipe.weights_for(len(parents))
        self.caches: tuple[Slot, ...] = ()
        self._views: Sequence[Weights] = [parent.weights for parent in parents]  # what is mixed, anchor first
        self.compared, self.compared_by = tuple[Compared, ...](), ""
        self.sides: list[Side] = []
        self._yields, self.yielded = yields, False
        self.aligner: Aligner | None = None
        self._looks = data is not None and (uses_data(recipe) if looks is None else looks)
        self._notes = [note for parent in parents for note in parent.notes]
        self._lacking = frozenset[str]().union(*(parent.lacking for parent in parents))

    def pairs(self) -> list[Pair]:
        """Every source beside the anchor: traced and matched, once."""
        if self.sides:
            return [Pair(self.sides[0], side) for side in self.sides[1:]]
        anchor = self.parents[0].module
        self._tell_differences()
        with self.clock.stage("trace"):
            inputs = self._examples
            if self.data is not None and self._looks:
                inputs = first_batch(anchor, self.data, self._batch)
            found = sides(self.parents, inputs, lambda side: set_aside(side, self.recipe) | self._lacking)
        self.sides, self.caches = found, found[0].program.caches
        if lost := unreached(found[0].graph):
            self._notes.append(f"no example input reaches {', '.join(lost)}: there the anchor's own tensors are kept")
        return [Pair(found[0], side) for side in found[1:]]

    def run(self, sink: Sink, *, verify: bool, keep: bool = False) -> tuple[list[Alignment], dict[str, float] | None]:
        """Every fused tensor into ``sink``; the alignment of every source (with its maps, to ``keep``), the gate's figures."""
        if self.recipe.scheme == "average":
            require_room(plain_mib(), what="averaging", helps="a machine with more")
            return self._average(sink), None
        pairs, gate = self.pairs(), None
        self._require_room(pairs, verify=verify)
        if verify:
            with self.clock.stage("verify"):
                found = check(self.parents, self.sides, self.recipe.seed)
                gate = {"error": found.error, "control": found.control}
        with self.clock.stage("measure"):
            measured = [self._measure(pair) for pair in pairs]
        with self.clock.stage("align"):
            walks = self._found(pairs, measured, keep=keep)
            for name, carries in complete(walks, lambda done, total: self._progress("align", done, total)):
                with self.clock.stage("average"):
                    sink(name, self._mixed(name, carries))
            for name in sorted(walks[0].kept):
                if self.sides[0].graph.ties[name] == name:
                    sink(name, self.parents[0].weights.blocks(name, BLOCK))
        return [own.alignment() for own in walks], gate

    def plan(self, *, verify: bool) -> Plan:
        """What a run would do and cost; nothing is solved, and a plain average is not even traced."""
        if self.recipe.scheme == "average":
            return plain_plan([self._bytes(parent) for parent in self.parents], rates())
        return plan(self.pairs(), self.recipe, self._task(verify=verify), rates())

    def space_names(self) -> dict[str, str]:
        """Names of the anchor's spaces by id, once it is traced."""
        return {space.id: space.name for side in self.sides[:1] for space in side.graph.spaces}

    def _task(self, *, verify: bool) -> Task:
        return Task(verify, self.data.size if self.data is not None and self._looks else 0)

    def _bytes(self, parent: Parent) -> int:
        weights = parent.weights
        return sum(weights.shape(name).numel() * weights.stored(name).itemsize for name in weights.alike)

    def _require_room(self, pairs: Sequence[Pair], *, verify: bool) -> None:
        helps = ["--recipe vanilla", *(["--no-verify"] if verify else [])]
        helps += ["a smaller --batch-size"] if self._looks else []
        needed = needed_mib(pairs, self.recipe, self._task(verify=verify))
        require_room(needed, what="this fusion", helps=", ".join([*helps, "or a machine with more"]))

    def note(self, *notes: str) -> None:
        """For the report."""
        self._notes += notes

    def finish(self) -> None:
        """The result is written: nothing was kept to go on from."""

    def notes(self, alignments: Sequence[Alignment]) -> tuple[str, ...]:
        """What the report says beside figures."""
        loose = [s.name for a in alignments for s in a.solved if not s.converged]
        found = [note for a in alignments for note in a.notes] + self._notes
        return (*found, *(f"{name}: the solver did not converge" for name in loose))

    def _average(self, sink: Sink) -> list[Alignment]:
        if not self.sides:  # else they were told when they were traced
            self._tell_differences()
        with self.clock.stage("average"):
            pieces = plain_pieces(self.parents, self.weights)
            for done, _ in enumerate(at_once(lambda piece: sink(*piece), pieces)):
                self._progress("average", done + 1, len(pieces))
        return []

    def _tell_differences(self) -> None:
        self._notes += differences([p.described for p in self.parents], classes=not self.recipe.keeps_classifier)

    def _found(self, pairs: Sequence[Pair], measured: Sequence[Measured], *, keep: bool) -> Sequence[Walk]:
        """Whatever gives every tensor its carries, by the scheme."""
        if self.recipe.scheme != "aligned":
            return self._walks(pairs, measured, self._regulariser(pairs, measured), keep=keep, last=True)
        aside = set_aside(pairs[0].anchor, self.recipe) | self._lacking
        options, tell = self.recipe.aligned, self._progress
        try:
            aligner = Aligner(self.sides, options, self.weights, self.data, aside=aside, tell=tell)
        except UnequalError as error:
            if not self._yields:
                raise
            self.yielded = True
            self._notes.append(f"not aligned by exact maps, but by recipe {UNEQUAL}: {error}")
            own = {"weights": self.weights, "seed": self.recipe.seed}
            self.recipe = recipes.read(UNEQUAL, own)
            return self._walks(pairs, measured, self._regulariser(pairs, measured), keep=keep, last=True)
        self.aligner = aligner
        if not aligner.shared:
            self._views = aligner.form.views
        return [AlignedWalk(aligner, k, aside, keep=keep) for k in range(len(pairs))]

    def _measure(self, pair: Pair) -> Measured:
        return measure(pair, self.recipe, self.data, lambda done, total: self._progress("measure", done, total))

    def _walks(
        self,
        pairs: Sequence[Pair],
        measured: Sequence[Measured],
        value: float,
        *,
        keep: bool = False,
        last: bool = False,
    ) -> list[Walk]:
        aside = set_aside(pairs[0].anchor, self.recipe) | self._lacking
        return [
            walk(pair, self.recipe, own, value, aside=aside, keep=keep, last=last)
            for pair, own in zip(pairs, measured, strict=True)
        ]

    def _mixed(self, name: str, carries: Sequence[tuple[Carry, ...]]) -> Iterator[torch.Tensor]:
        return mixed(name, self._views[0], self._views[1:], carries, self.weights)

    def _regulariser(self, pairs: Sequence[Pair], measured: Sequence[Measured]) -> float:
        wanted = self.recipe.otfusion.regulariser
        if self.recipe.otfusion.solver != "sinkhorn":
            return 1.0
        if wanted != "auto":
            return float(wanted)
        if self.data is None:
            raise DataError(
                "otfusion.regulariser auto: chooses by unlabelled inputs and none were given; give data, or a number"
            )

        def fused_with(value: float) -> dict[str, torch.Tensor]:
            walks = self._walks(pairs, measured, value)
            return fused(self.parents[0].weights, [p.weights for p in self.parents[1:]], walks, self.weights)

        best, tried = best_regulariser(self.sides, self.weights, self.data, fused_with)
        used = self.recipe.otfusion.model_copy(update={"regulariser": best})
        self.recipe = self.recipe.model_copy(update={"otfusion": used})  # the report and the card tell what was used
        table = ", ".join(f"{value:g}: {gap:.3f}" for value, gap in tried.items())
        told = f"regulariser {best:g} chosen by divergence from the parents' mean prediction ({table})"
        self._notes.insert(0, told)
        return best
