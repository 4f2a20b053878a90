"""What a run would solve, before it does."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from otfuse.align.structure import kept_units, shared_maps
from otfuse.core.graph import NodeKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otfuse.align.pair import Pair
    from otfuse.core.recipe import Recipe

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would solve, and the memory it is expected to take.

    ``problems``: (name, anchor units, source units, method); ``spaces``: (id, kind, anchor size, source size);
    ``memory_mib``: expected memory above what importing and loading takes.
    """

    problems: tuple[tuple[str, int, int, str], ...]
    spaces: tuple[tuple[str, str, int, int], ...]
    memory_mib: float


def plan(pairs: Sequence[Pair], recipe: Recipe) -> Plan:
    """Problems of all sources, the spaces of the first, and the memory: moments, the largest problem, one model."""
    problems = [problem for pair in pairs for problem in _problems(pair, recipe)]
    theirs = {space.id: space.size for space in pairs[0].source.graph.spaces}
    spaces = [(s.id, s.kind, s.size, theirs.get(s.id, 0)) for s in pairs[0].anchor.graph.spaces if s.pinned is None]
    sizes = [na * ns for _, na, ns, _ in problems]
    moments = sum(sizes) / len(pairs) if recipe.otfusion.features == "activations" else 0
    weights = sum(prod(t.shape) * t.element_size() for t in pairs[0].anchor.weights.values())
    memory = (8 * (moments + 6 * max(sizes, default=0)) + 2 * weights) / _MIB
    return Plan(tuple(problems), tuple(spaces), memory)


def _problems(pair: Pair, recipe: Recipe) -> list[tuple[str, int, int, str]]:
    if recipe.scheme != "otfusion":
        return []
    options = recipe.otfusion
    groups = shared_maps(pair, tied=options.query_key == "tied")
    kept = kept_units(pair) if options.classifier == "anchor" else frozenset[int]()
    found: list[tuple[str, int, int, str]] = []
    for node in pair.anchor.graph.nodes:
        makes = node.kind in (NodeKind.LINEAR, NodeKind.SOURCE)
        if (
            not makes
            or node.index in kept
            or pair.fixed(node.index)
            or groups.get(node.index, (node.index,))[0] != node.index
        ):
            continue
        found.append((node.name, node.size, pair.nodes(node.index)[1].size, options.solver))
    return found
