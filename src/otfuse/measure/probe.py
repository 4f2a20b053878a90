"""Both models on the same inputs: moments of every pair of nodes, and nothing stored."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from otfuse.errors import DataError
from otfuse.measure.moments import AbsoluteMean, Moments, PairMoments
from otfuse.measure.observe import Part
from otfuse.program.inputs import examples
from otfuse.program.run import Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from otfuse.core.dataset import Dataset
    from otfuse.core.graph import FlowGraph, Observation
    from otfuse.measure.moments import Affine
    from otfuse.measure.observe import RowFilter
    from otfuse.program.export import Program
    from otfuse.program.inputs import Inputs

Terms: TypeAlias = "Mapping[int, Sequence[tuple[int, Affine]]]"


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One model: its program, its flow graph, its stored tensors by first name."""

    program: Program
    graph: FlowGraph
    weights: Mapping[str, torch.Tensor]


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
    sums: dict[int, PairMoments] = {}
    for part, batch in probe_batches(anchor.program, data, progress):
        for index, values in _side_by_side(anchor, source, batch, nodes):
            rows = [
                keep.rows(value, observation, part).cpu()
                for value, observation in zip(values, (_seen(anchor, index), _seen(source, index)), strict=True)
            ]
            if index not in sums:
                sums[index] = PairMoments(rows[0].shape[1], rows[1].shape[1])
            sums[index].add(*rows)
    return {index: total.result() for index, total in sums.items()}


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
        for name, value in runner.watch(anchor.weights, batch, frozenset(names)):
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


def _side_by_side(
    anchor: Side, source: Side, batch: Inputs, nodes: Sequence[int]
) -> Iterator[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
    ours, theirs = _names(anchor, nodes), _names(source, nodes)
    runs = [
        Runner(side.program).watch(side.weights, batch, frozenset(n)) for side, n in ((anchor, ours), (source, theirs))
    ]
    waiting: dict[int, torch.Tensor] = {}
    early: dict[int, torch.Tensor] = {}
    for name, value in runs[0]:
        waiting.update(dict.fromkeys(ours[name], value))
        while waiting.keys() - early.keys():
            step = next(runs[1], None)
            if step is None:
                break
            early.update(dict.fromkeys(theirs[step[0]], step[1]))
        for index in list(waiting.keys() & early.keys()):
            yield index, (waiting.pop(index), early.pop(index))


def probe_batches(
    program: Program, data: Dataset, progress: Callable[[int, int], None] | None = None
) -> Iterator[tuple[Part, Inputs]]:
    """Batches of the program's own size; the last is filled up with its own examples again."""
    size = examples(program.inputs)
    for done, batch in enumerate(data.batches(size)):
        if progress is not None:
            progress(done * size, data.size)
        rows = np.arange(size) % batch.size
        yield Part(batch.size, size), as_inputs(program, batch.take(rows))
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
    """The first batch as inputs to trace with: by keyword if forward names them, else by position."""
    names = inspect.signature(model.forward).parameters
    batch = data.take(slice(0, even(data.size, size)))
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.inputs.items()}
    if all(name in names for name in tensors):
        return tensors
    if len(tensors) == 1:
        return tuple(tensors.values())
    odd = next(name for name in tensors if name not in names)
    raise DataError(
        f"data: {type(model).__name__} has no input {odd!r}; name the arrays as its forward does: {', '.join(names)}"
    )
