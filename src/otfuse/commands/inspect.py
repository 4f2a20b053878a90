"""`otfuse inspect`: the flow graph of a checkpoint, and the gate on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from otfuse.flow.groups.element import element
from otfuse.flow.groups.find import EqualWeights, symmetries, with_exact
from otfuse.flow.proof.gate import Verification, verify_graph
from otfuse.fusion.sides import traced
from otfuse.io.parents import Family
from otfuse.measure.clock import Announcing

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from otfuse.core.graph import FlowGraph
    from otfuse.measure.clock import Progress


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """A flow graph with the largest exact groups named, and the figures of the gate if they were asked for."""

    graph: FlowGraph
    verification: Verification | None


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
    clock = Announcing(progress)
    with clock.stage("load"):
        family = Family([model], allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    with family:
        anchor = family.anchor
        with clock.stage("trace"):
            side = traced(anchor, None)
        with clock.stage("groups"):
            found = symmetries(side)
            graph = with_exact(side.graph, found)
        if not verify:
            return Inspection(graph, None)
        with clock.stage("verify"):

            def equal(weights: Mapping[str, torch.Tensor]) -> EqualWeights:
                return EqualWeights(weights, found, side.graph.ties, [element(s, seed) for s in found.found])

            proved = verify_graph(anchor.module, side.program, side.graph, side.weights, seed=seed, equal=equal)
            return Inspection(graph, replace(proved, graph=graph))
