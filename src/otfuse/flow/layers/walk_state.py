"""What the layer-level walk knows on its way: what every value carries, and the nodes met so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from otfuse.core.graph import NodeKind, Piece
from otfuse.flow.algebra.value import values_in
from otfuse.flow.follow.numbers import (
    Held,
    Scores,
    Units,
    nodes_of,
    positions_of,
    renumbered,
    row,
    squeezed,
    varying,
    written_by,
)
from otfuse.flow.layers.found import Nodes, reading

if TYPE_CHECKING:
    from otfuse.flow.algebra.axes import Axis
    from otfuse.flow.rules.facts import Facts
    from otfuse.program.export import Program


class Trail:
    """The environment of the walk. Its steps (``otfuse.flow.layers.steps``) read from it and add nodes to it."""

    def __init__(self, program: Program, facts: Facts) -> None:
        self.facts, self.nodes, self.program = facts, Nodes(), program
        self._env = dict[fx.Node, Any]()

    def carried(self, argument: Any) -> Any:
        """What an argument carries: Units, Held, Scores, Reduced, a list of them, or None for nothing."""
        return self._env.get(argument) if isinstance(argument, fx.Node) else None

    def put(self, node: fx.Node, carried: Any) -> None:
        """What a node of the program carries."""
        self._env[node] = carried

    def hold(self, node: fx.Node) -> None:
        """A placeholder: a stored tensor, or nothing."""
        name = self.program.parameters.get(node.name)
        if name is not None and self.program.shapes[name]:
            self._env[node] = Held(name, positions_of(self.program.shapes[name]))

    def derived(self, argument: Any) -> bool:
        """Whether an argument depends on a parameter."""
        return isinstance(argument, fx.Node) and any(v.derived for v in values_in(self.facts.env.get(argument)))

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of a node's (first) tensor."""
        held = node.meta["val"]
        held = held[0] if isinstance(held, (list, tuple)) else held
        return tuple(int(n) for n in held.shape)

    def units(self, argument: Any) -> Units | None:
        """The units an argument carries; a stored tensor becomes a source."""
        found = self.carried(argument)
        if isinstance(found, Held):
            return self.source(argument, found)
        return found if isinstance(found, Units) else None

    def source(self, node: fx.Node, held: Held) -> Units | None:
        """A stored tensor that enters the flow as it is: a token or a table. Its units lie where its axes are free."""
        dims = self._free_dims(next(values_in(self.facts.env[node])).axes)
        if not dims:
            return None
        pieces = []
        for axis, index in enumerate(held.index):
            if set(varying(index)) == set(dims) and len(dims) == 1:
                flat = index.movedim(dims[0], 0).reshape(index.shape[dims[0]], -1)[:, 0]
                pieces.append(Piece(held.tensor, writes=(axis, flat.numpy().copy())))
        found = Units(self.nodes.add(NodeKind.SOURCE, node, tuple(held.index[0].shape), dims, pieces=pieces))
        self.nodes.last.stored = True
        self.put(node, found)
        return found

    def opaque(self, node: fx.Node) -> Units | None:
        """Units come out that are not followed; they lie where the axes of the result are free."""
        value = next(values_in(self.facts.env[node]), None)
        dims = self._free_dims(value.axes) if value is not None and value.derived else []
        if not dims:
            return None
        carried = [self.carried(a) for a in node.all_input_nodes]
        flows = [u for c in carried for u in ([c.query, c.key] if isinstance(c, Scores) else [c])]
        rows = [row(c.ids) for c in flows if isinstance(c, Units)]
        readings = [reading("input", found) for found in rows if found is not None]
        return Units(self.nodes.add(NodeKind.OPAQUE, node, self.shape(node), dims, readings=readings))

    def origins(self, ids: torch.Tensor, *kinds: NodeKind) -> torch.Tensor:
        """The same units by the numbers of the nodes behind all nodes of these kinds, which keep them one by one."""
        kept = squeezed(ids)
        for index in range(max(nodes_of(kept), default=-1), -1, -1):  # what a node reads was found before it
            node = self.nodes.found[index]
            here = written_by(kept, index)
            if node.kind in kinds and here.any():
                read = node.readings[0]
                kept = torch.where(here, renumbered(kept, here, read.node, read.units[:, 0]), kept)
        return kept.expand(ids.shape)

    def _free_dims(self, axes: tuple[Axis, ...]) -> list[int]:
        """Dimensions that may hold units: a leaf that nothing pins and that is not a mere repetition."""
        algebra = self.facts.algebra
        cells = [[algebra.cell(leaf) for leaf in algebra.leaves(axis)] for axis in axes]
        return [d for d, found in enumerate(cells) if any(not cell.hard and not cell.wild for cell in found)]
