"""What a run would solve, the memory it would take and how long, before it does."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING

import torch

from otfuse.align import aligned_plan
from otfuse.align.structure import kept_units, needed_nodes, shared_maps
from otfuse.core.graph import NodeKind
from otfuse.program.inputs import examples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx

    from otfuse.align.pair import Pair
    from otfuse.core.recipe import Recipe
    from otfuse.measure.probe import Side
    from otfuse.measure.rates import Rates
    from otfuse.program.export import Program

_MIB = 1 << 20
# What follows was counted or measured, see docs/scale.md: matrices of a problem that the solver holds at once, passes over
# memory, turns of an empty loop that importing, tracing one operator and proving one take.
_HELD = 6
_STEPS = 30  # of a solver: steps of Sinkhorn's iteration, each two passes over the kernel, and what is done around them
_PLAIN_PASSES = 20  # files among them: the kernel's part
_GATE_PASSES = 12
_STARTING, _IMPORTING, _TRACING, _PROVING = 100e6, 200e6, 0.3e6, 0.2e6
_STRUCTURE = 90 << 20  # bytes of a traced program beside its operators
_PER_OPERATOR = 60 << 10
_PLAIN = 90 << 20  # blocks of the plain average and what glibc keeps for the next, whatever the models


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would solve, the memory and the time it is expected to take.

    ``problems``: (name, anchor units, source units, method); ``spaces``: (id, kind, anchor size, source size);
    ``memory_mib``: the expected peak above what importing takes; ``seconds``: of the whole command.
    ``stages``: (name, what it does), where a scheme has several.
    """

    problems: tuple[tuple[str, int, int, str], ...]
    spaces: tuple[tuple[str, str, int, int], ...]
    memory_mib: float
    seconds: float
    stages: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked of a run beside its recipe: whether the gate runs, and how many ``examples`` are looked at."""

    verify: bool = True
    examples: int = 0


def plain_plan(stored: Sequence[int], rates: Rates) -> Plan:
    """The plan of a plain average of checkpoints with so many bytes of weights, anchor first: no problem is solved."""
    moved = sum(stored) + stored[0]
    seconds = _PLAIN_PASSES * moved / rates.memory + sum(stored) / rates.hashed + _STARTING / rates.python
    return Plan((), (), plain_mib(), seconds)


def plain_mib() -> float:
    """The expected peak of a plain average above what importing takes."""
    return _PLAIN / _MIB


def plan(pairs: Sequence[Pair], recipe: Recipe, task: Task, rates: Rates) -> Plan:
    """Problems of all sources, the spaces of the first, and the cost of the run, stage by stage."""
    problems = [problem for pair in pairs for problem in _problems(pair, recipe)]
    theirs = {space.id: space.size for space in pairs[0].source.graph.spaces}
    spaces = [(s.id, s.kind, s.size, theirs.get(s.id, 0)) for s in pairs[0].anchor.graph.spaces if s.pinned is None]
    solved = tuple((name, na, ns, method) for name, na, ns, method, *_ in problems)
    if recipe.scheme == "aligned":
        solved = tuple(problem for pair in pairs for problem in aligned_plan.problems(pair))
    return Plan(solved, tuple(spaces), needed_mib(pairs, recipe, task), _seconds(pairs, recipe, task, problems, rates))


Problem = tuple[
    str, int, int, str, int, int
]  # name, units of both, method, values of the anchor's features, products that carry the source's


def needed_mib(pairs: Sequence[Pair], recipe: Recipe, task: Task) -> float:
    """The expected peak above what importing takes: structure, and the stage that holds most.

    Gate: one state, what moves of its largest tensors, values and the outputs before. Measure: moments of all problems, a batch of both models.
    Align: the largest problem with its features, the two readings of the map before it, a carried tensor.
    """
    problems = [problem for pair in pairs for problem in _problems(pair, recipe)]
    side, source = pairs[0].anchor, pairs[0].source
    sizes = _sizes(side)
    largest, moments, measure = max(sizes.values(), default=0), 0, 0.0
    if recipe.scheme == "otfusion" and recipe.otfusion.features == "activations":
        moments = sum(8 * na * ns for _, na, ns, *_ in problems)
        batch = sum(activations(own.program, _observed(pairs[0], own)) for own in (side, source))
        measure = moments + 2 * largest + batch
    gate = sum(sizes.values()) + 3 * largest + 2 * activations(side.program, set()) if task.verify else 0
    solve = max((8 * _HELD * na * ns + 24 * values for _, na, ns, _, values, _ in problems), default=0)
    maps = max((16 * na * ns for _, na, ns, *_ in problems), default=0)
    align = moments + maps + max(solve, 3 * largest)
    if recipe.scheme == "aligned":
        align += aligned_plan.cost(pairs, recipe.aligned, len(side.program.graph.nodes)).memory
        if recipe.aligned.features == "activations":
            align += int(2 * activations(side.program, {n.name for n in side.program.graph.nodes}))
    return (structure(side.program) + max(gate, measure, align)) / _MIB


def structure(program: Program) -> float:
    """Bytes of a traced program."""
    return float(_STRUCTURE + _PER_OPERATOR * len(program.graph.nodes))


def _seconds(pairs: Sequence[Pair], recipe: Recipe, task: Task, problems: Sequence[Problem], rates: Rates) -> float:
    """Of the whole command: importing, tracing, then products of matrices and passes over memory."""
    side, shapes = pairs[0].anchor, pairs[0].anchor.graph.shapes
    python = _IMPORTING + len(side.program.graph.nodes) * (_TRACING + (_PROVING if task.verify else 0))
    values, dense = sum(map(prod, shapes.values())), recipe.otfusion.solver == "sinkhorn"
    if recipe.scheme == "aligned":
        cost = aligned_plan.cost(pairs, recipe.aligned, len(side.program.graph.nodes))
        meetings = len(pairs) * (len(pairs) + 1) // 2  # every two models are run together once
        seen = task.examples * places(side.program) * 4 * values * meetings
        python += cost.python
        moved = cost.moved + 4 * _PLAIN_PASSES * values * len(pairs) + (4 * _GATE_PASSES * values if task.verify else 0)
        return python / rates.python + seen / rates.single + cost.double / rates.double + moved / rates.memory
    along = sum(2 * prod(shapes[name]) * shapes[name][axis] for name, axis in _carried(pairs[0]))
    single = float(along * len(pairs) * dense)
    moved = 16 * _STEPS * sum(na * ns for _, na, ns, *_ in problems) + 4 * _PLAIN_PASSES * values * len(pairs)
    double = 0.0
    if recipe.otfusion.features == "activations":
        rows = task.examples * places(side.program)
        single += rows * (4 * values * len(pairs) + sum(2 * na * ns for _, na, ns, *_ in problems))
    else:
        double = float(sum(2 * (v * ns + dense * carried) for _, _, ns, _, v, carried in problems))
    moved += 4 * _GATE_PASSES * values if task.verify else 0
    return python / rates.python + single / rates.single + double / rates.double + moved / rates.memory


def _observed(pair: Pair, side: Side) -> set[str]:
    found = (side.graph.nodes[index].observation for index in needed_nodes(pair))
    return {observation.value for observation in found if observation is not None}


def activations(program: Program, wanted: set[str]) -> float:
    """Bytes of values at once in a forward pass on the inputs that were traced, up to the last that is ``wanted``.

    What shares memory counts once.
    """
    steps = [node for node in program.graph.nodes if node.op == "call_function"]
    steps = steps[: max((i + 1 for i, node in enumerate(steps) if node.name in wanted), default=len(steps))]
    place = {node: i for i, node in enumerate(steps)}
    stored = {_storage(node) for node in program.graph.nodes if node.op == "placeholder"}
    born, dies, sizes = dict[int, int](), dict[int, int](), dict[int, int]()
    for i, node in enumerate(steps):
        key = _storage(node)
        if key is None or key in stored:
            continue
        sizes[key] = node.meta["val"].untyped_storage().nbytes()
        born.setdefault(key, i)
        dies[key] = max([dies.get(key, i), *(place.get(user, i) for user in node.users)])
    change = [0] * (len(steps) + 2)
    for key, size in sizes.items():
        change[born[key]] += size
        change[dies[key] + 1] -= size
    return float(max(accumulate(change)))


def _storage(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    return int(value.untyped_storage()._cdata)  # noqa: SLF001  # storages have no public identity on fake tensors


def places(program: Program) -> float:
    """Rows of units per example: tokens of a text, patches of an image."""
    values = [n.meta["val"] for n in program.graph.nodes if n.target is torch.ops.aten.linear.default]
    return max((prod(v.shape[:-1]) for v in values), default=1) / examples(program.inputs)


def _sizes(side: Side) -> dict[str, int]:
    """Bytes of every stored tensor in the type that is computed in."""
    shapes = {name: shape for name, shape in side.graph.shapes.items() if side.graph.ties.get(name, name) == name}
    least = min(shapes, key=lambda name: prod(shapes[name]))
    item = side.weights[least].element_size()
    return {name: item * prod(shape) for name, shape in shapes.items()}


def _carried(pair: Pair) -> set[tuple[str, int]]:
    """Axes along which a tensor is multiplied by a map."""
    return {(m.tensor, m.axis) for space in pair.anchor.graph.spaces if space.pinned is None for m in space.members}


def _problems(pair: Pair, recipe: Recipe) -> list[Problem]:
    if recipe.scheme != "otfusion":
        return []
    options = recipe.otfusion
    groups = shared_maps(pair, tied=options.query_key == "tied")
    kept = kept_units(pair) if options.classifier == "anchor" else frozenset[int]()
    found: list[Problem] = []
    for node in pair.anchor.graph.nodes:
        makes = node.kind in (NodeKind.LINEAR, NodeKind.SOURCE)
        group = groups.get(node.index, (node.index,))
        if not makes or node.index in kept or pair.fixed(node.index) or group[0] != node.index:
            continue
        values = [_features(pair, index) for index in group]
        sizes = node.size, pair.nodes(node.index)[1].size
        carried = sum(v * v // node.size for v in values) if node.readings else 0
        found.append((node.name, *sizes, options.solver, sum(values), carried))
    return found


def _features(pair: Pair, index: int) -> int:
    which = pair.main_piece(index)
    return 0 if which is None else prod(pair.anchor.graph.shapes[pair.anchor.graph.nodes[index].pieces[which].tensor])
