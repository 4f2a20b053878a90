"""Both models on the same inputs: moments of every pair of nodes, and nothing stored."""

from __future__ import annotations

import contextlib
import inspect
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from otfuse.errors import DataError
from otfuse.measure.moments import AbsoluteMean, Moments, PairMoments
from otfuse.measure.observe import Part
from otfuse.program.inputs import examples
from otfuse.program.run import Questions, Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from otfuse.core.dataset import Dataset
    from otfuse.core.graph import FlowGraph, Observation
    from otfuse.measure.moments import Affine
    from otfuse.measure.observe import RowFilter
    from otfuse.program.export import Program
    from otfuse.program.inputs import Inputs

Apply: TypeAlias = "Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]"
Found: TypeAlias = "tuple[int, tuple[torch.Tensor, torch.Tensor]]"
Terms: TypeAlias = "Mapping[int, Sequence[tuple[int, Affine]]]"

_TOKENS = 1024  # of a forward pass: products of matrices are no faster with more


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One model: its program, its flow graph, its stored tensors by every name.

    ``few`` makes the program on a few examples, for trials; without it they run on those that it was traced on.
    """

    program: Program
    graph: FlowGraph
    weights: Mapping[str, torch.Tensor]
    few: Callable[[], Program] | None = None


def pair_moments(
    anchor: Side,
    source: Side,
    data: Dataset,
    nodes: Sequence[int],
    keep: RowFilter,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, Moments]:
    """Moments of the nodes with these indices, over all of ``data``, batch by batch.

    Both programs advance together, so that at any time only the values between two of them exist.
    """
    sizes = {index: [side.graph.nodes[index].size for side in (anchor, source)] for index in nodes}
    # Sums stay; made before what comes and goes, they leave no holes between.
    sums = {index: PairMoments(*own) for index, own in sizes.items()}
    seen = {index: (_seen(anchor, index), _seen(source, index)) for index in nodes}
    with _at_once() as apply:
        advance = _Advance((anchor, source), nodes, keep, apply)
        for part, batch in probe_batches(anchor.program, data, progress):

            def add(found: Found, part: Part = part) -> None:
                index, values = found
                rows = [keep.rows(v, o, part).cpu() for v, o in zip(values, seen[index], strict=True)]
                sums[index].add(*rows)

            waiting: list[Found] = []
            for found in advance.through(batch):
                waiting.append(found)
                if len(waiting) == 2:  # as many as there are threads
                    list(apply(add, waiting))
                    waiting = []
            list(apply(add, waiting))
    return {index: sums.pop(index).result() for index in list(sums)}  # one at a time stands beside its result


def absolute_means(
    anchor: Side, data: Dataset, terms: Terms, keep: RowFilter, at: Mapping[int, int]
) -> dict[int, torch.Tensor]:
    """Mean absolute value per unit of sums of transformed values of the anchor: ``terms`` by key (a second pass).

    The terms of a sum are compared where the node ``at[key]`` that adds them is read.
    """
    sums = {key: AbsoluteMean([affine for _, affine in parts]) for key, parts in terms.items()}
    wanted = {index for parts in terms.values() for index, _ in parts}
    runner = Runner(anchor.program)
    for part, batch in probe_batches(anchor.program, data):
        names = _names(anchor, sorted(wanted))
        held: dict[int, torch.Tensor] = {}
        for name, value in runner.watch(anchor.weights, batch, dict.fromkeys(names)):
            held.update(dict.fromkeys(names[name], value))
        for key, parts in terms.items():
            read = _seen(anchor, at[key]).read
            rows = []
            for index, _ in parts:
                seen = _seen(anchor, index) if len(parts) == 1 else replace(_seen(anchor, index), read=read)
                rows.append(keep.rows(held[index], seen, part).cpu())
            sums[key].add(*rows)
    return {key: total.value for key, total in sums.items()}


def _seen(side: Side, index: int) -> Observation:
    observation = side.graph.nodes[index].observation
    assert observation is not None, side.graph.nodes[index].name  # the caller asks for observed nodes
    return observation


def _names(side: Side, nodes: Sequence[int]) -> dict[str, list[int]]:
    names: dict[str, list[int]] = {}
    for index in nodes:
        names.setdefault(_seen(side, index).value, []).append(index)
    return names


class _Advance:
    """Two programs side by side on the same batches, at once: the one whose values wait for the other's stands still."""

    def __init__(self, sides: tuple[Side, Side], nodes: Sequence[int], keep: RowFilter, apply: Apply) -> None:
        self._sides, self._apply = sides, apply
        self._runners = [Runner(side.program) for side in sides]
        self._names = [_names(side, nodes) for side in sides]
        self._wanted = [
            {
                node.name: keep.wanted([_seen(side, i) for i in names[node.name]], node.meta["val"].shape[-1])
                for node in side.program.graph.nodes
                if node.name in names
            }
            for side, names in zip(sides, self._names, strict=True)
        ]

    def through(self, batch: Inputs) -> Iterator[Found]:
        """Every node with its two values, as soon as both exist."""
        found: tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]] = ({}, {})
        runs = [
            runner.watch(side.weights, batch, wanted)
            for runner, side, wanted in zip(self._runners, self._sides, self._wanted, strict=True)
        ]
        while True:
            waits = [bool(found[i].keys() - found[1 - i].keys()) for i in (0, 1)]
            moving = [i for i in (0, 1) if not waits[i] or all(waits)]
            steps = list(self._apply(lambda i: next(runs[i], None), moving))
            for i, step in zip(moving, steps, strict=True):
                if step is not None:
                    found[i].update(dict.fromkeys(self._names[i][step[0]], step[1]))
            for index in sorted(found[0].keys() & found[1].keys()):
                yield index, (found[0].pop(index), found[1].pop(index))
            if not any(steps):
                return


@contextlib.contextmanager
def _at_once() -> Iterator[Apply]:
    """`map` with one thread per model, each with its share of PyTorch's threads; plain `map` where there is but one.

    Two models share nothing. Operators that split their work wait for each other after every step: on a quiet machine
    that costs nothing, beside other jobs it doubles the time (docs/decisions.md).
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield map
        return
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(threads // 2,)) as pool:
        try:
            yield pool.map
        finally:
            torch.set_num_threads(threads)  # what threads that start later are given


def probe_batches(
    program: Program, data: Dataset, progress: Callable[[int, int], None] | None = None
) -> Iterator[tuple[Part, Inputs]]:
    """Batches of the program's own size; the last is filled up with its own examples again."""
    size, questions = examples(program.inputs), Questions(program)
    for done, batch in enumerate(data.batches(size)):
        if progress is not None:
            progress(done * size, data.size)
        rows = np.arange(size) % batch.size
        inputs = as_inputs(program, batch.take(rows))
        if questions.answered_anew(inputs):
            raise DataError(
                f"data: examples {done * size} to {done * size + batch.size - 1} lead the model another way than the first "
                f"{size}: what it computes depends on {', '.join(questions.inputs())}; give examples that are alike in these "
                "(images of one size, at the same places)"
            )
        yield Part(batch.size, size), inputs
    if progress is not None:
        progress(data.size, data.size)


def even(examples: int, most: int) -> int:
    """The size of equal batches, at most ``most``: what fills up the last of them is worked through for nothing."""
    batches = max(1, -(-examples // most))
    return -(-examples // batches)


def as_inputs(program: Program, batch: Dataset) -> Inputs:
    """A batch in the form of the program's example inputs."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.inputs.items()}
    if isinstance(program.inputs, tuple):
        return tuple(tensors.values())
    return {name: tensors.get(name, value) for name, value in program.inputs.items()}


def first_batch(model: nn.Module, data: Dataset, size: int) -> Inputs:
    """The first batch as inputs to trace with: by keyword if forward names them, else by position.

    At most ``size`` examples: of long texts fewer, for every token's outputs are as wide as the vocabulary.
    """
    names = inspect.signature(model.forward).parameters
    batch = data.take(slice(0, even(data.size, _at_once_most(data, size))))
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.inputs.items()}
    if all(name in names for name in tensors):
        return tensors
    if len(tensors) == 1:
        return tuple(tensors.values())
    odd = next(name for name in tensors if name not in names)
    raise DataError(
        f"data: {type(model).__name__} has no input {odd!r}; name the arrays as its forward does: {', '.join(names)}"
    )


def _at_once_most(data: Dataset, size: int) -> int:
    texts = [array for array in data.inputs.values() if array.ndim == 2 and array.dtype.kind in "iu"]
    longest = max((int(array.shape[1]) for array in texts), default=1)
    return min(size, max(2, _TOKENS // max(1, longest)))
