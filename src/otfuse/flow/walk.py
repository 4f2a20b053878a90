"""The layer-level walk: the program read once more, this time for the steps a person would name (graph.md section 8)."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from otfuse.core.graph import NodeKind, Piece, Reading
from otfuse.flow.carried import (
    NOTHING,
    Held,
    Reduced,
    Scores,
    Units,
    at_place,
    nodes_of,
    positions_of,
    row,
    unit_dims,
    varying,
)
from otfuse.flow.nodes import Nodes, beside, reading, same_units
from otfuse.flow.registry import Family, entry_of, operator_name
from otfuse.flow.value import values_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otfuse.flow.axes import Algebra
    from otfuse.flow.carried import Row
    from otfuse.flow.facts import Facts
    from otfuse.program.export import Program

_LINEAR_IN_UNITS = ("mul", "mul_", "div", "div_", "neg", "rsub", "add", "add_", "sub", "sub_", "where", "masked_fill")
_SUMS = ("add", "add_", "sub", "sub_", "rsub")
_QUOTIENTS = ("mul", "mul_", "div", "div_")


class Walk:
    """Carries :class:`Units` (and what else is known) along the program and notes the nodes it meets."""

    def __init__(self, program: Program, facts: Facts) -> None:
        self.facts, self.nodes = facts, Nodes()
        self._program, self._env = program, dict[fx.Node, Any]()

    def run(self) -> Nodes:
        """All nodes, the outputs last."""
        live = self._program.live()
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                name = self._program.parameters.get(node.name)
                if name is not None and self._program.shapes[name]:
                    self._env[node] = Held(name, positions_of(self._program.shapes[name]))
            elif node.op == "call_function" and node in live:
                self._env[node] = self._step(node)
        for node in self._program.outputs:
            self._output(node)
        return self.nodes

    # -- reading the environment -------------------------------------------------------------------------------------
    def carried(self, argument: Any) -> Any:
        """What an argument carries; None for what carries nothing."""
        return self._env.get(argument) if isinstance(argument, fx.Node) else None

    def derived(self, argument: Any) -> bool:
        """Whether an argument depends on a parameter."""
        return isinstance(argument, fx.Node) and any(v.derived for v in values_in(self.facts.env.get(argument)))

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of a node's (first) tensor."""
        held = node.meta["val"]
        held = held[0] if isinstance(held, (list, tuple)) else held
        return tuple(int(n) for n in held.shape)

    def source(self, node: fx.Node, held: Held) -> Units | None:
        """A stored tensor that enters the flow as it is: a token or a table. Its units lie where its axes are free."""
        value = next(values_in(self.facts.env[node]))
        algebra = self.facts.algebra
        dims = [d for d, axis in enumerate(value.axes) if any(is_free(algebra, leaf) for leaf in algebra.leaves(axis))]
        if not dims:
            return None
        pieces = []
        for axis, index in enumerate(held.index):
            if set(varying(index)) == set(dims) and len(dims) == 1:
                flat = index.movedim(dims[0], 0).reshape(index.shape[dims[0]], -1)[:, 0]
                pieces.append(Piece(held.tensor, writes=(axis, flat.numpy().copy())))
        ids = self.nodes.add(NodeKind.SOURCE, node, tuple(held.index[0].shape), dims, pieces=pieces)
        self.nodes.last.stored = True
        self._env[node] = Units(ids)
        return self._env[node]

    # -- one operator ------------------------------------------------------------------------------------------------
    def _step(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            items = self._env.get(node.args[0])  # type: ignore[arg-type]
            return items[node.args[1]] if isinstance(items, (list, tuple)) else None  # type: ignore[index]
        entry = entry_of(node)
        if entry is None:
            return None
        handler = {
            Family.KEEP: self._keep,
            Family.LAYOUT: self._layout,
            Family.POINTWISE: self._pointwise,
            Family.CONTRACTION: self._contraction,
            Family.CONVOLUTION: self._convolution,
            Family.ATTENTION: self._attention,
            Family.NORM: self._norm,
            Family.LOOKUP: self._lookup,
            Family.REDUCTION: self._reduction,
            Family.POOL: self._pool,
        }.get(entry.family)
        return handler(node) if handler is not None else None

    def _keep(self, node: fx.Node) -> Any:
        return self.carried(node.args[0])

    def _layout(self, node: fx.Node) -> Any:
        first = self.carried(node.args[0]) if not isinstance(node.args[0], (list, tuple)) else None
        if isinstance(first, Units):
            return _each(self._moved(node, {node.args[0]: first.ids}), lambda ids: Units(ids, first.normalised))
        if isinstance(first, Scores):
            return first
        if isinstance(first, Held):
            moved = [self._moved(node, {node.args[0]: index}) for index in first.index]
            if isinstance(moved[0], torch.Tensor):
                return Held(first.tensor, tuple(moved))
            return [Held(first.tensor, tuple(m[i] for m in moved)) for i in range(len(moved[0]))]
        if isinstance(node.args[0], (list, tuple)):
            return self._joined(node, list(node.args[0]))
        return None

    def _joined(self, node: fx.Node, parts: Sequence[Any]) -> Any:
        """Cat and stack: along tokens values lie side by side; along units they become a CONCAT."""
        carried = [self._as_units(part) for part in parts]
        if not any(isinstance(c, Units) for c in carried):
            return None
        known = {
            part: c.ids if c is not None else torch.full(self.shape(part), NOTHING)
            for part, c in zip(parts, carried, strict=True)
        }
        given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        dim = int(given) % len(self.shape(node))  # type: ignore[call-overload]
        ids = self._moved(node, known)
        along_units = operator_name(node) != "stack" and any(c is not None and dim in unit_dims(c.ids) for c in carried)
        if not along_units or len({n for c in carried if c is not None for n in nodes_of(c.ids)}) == 1:
            return Units(ids)
        readings = []
        for c in carried:
            found = row(c.ids) if c is not None else None
            if found is None or found.dims != (dim,):
                return None
            readings.append(reading("part", found))
        return Units(self.nodes.add(NodeKind.CONCAT, node, tuple(ids.shape), (dim,), readings=readings))

    def _as_units(self, argument: Any) -> Units | None:
        found = self.carried(argument)
        if isinstance(found, Held):
            return self.source(argument, found)
        return found if isinstance(found, Units) else None

    def _moved(self, node: fx.Node, known: dict[Any, torch.Tensor]) -> Any:
        """The operator run on numbers instead of values."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: known.get(n, n))
        if operator_name(node) in ("view", "_unsafe_view"):  # numbers may lie in memory in another order than values
            return args[0].reshape(self.shape(node))
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _pointwise(self, node: fx.Node) -> Any:
        operands = [a for a in [*node.args, *node.kwargs.values()] if isinstance(a, fx.Node)]
        flows = [a for a in operands if isinstance(self.carried(a), Units)]
        scores = next((self.carried(a) for a in operands if isinstance(self.carried(a), Scores)), None)
        if scores is not None:
            return scores
        held = [a for a in operands if isinstance(self.carried(a), Held)]
        if not flows:
            others = any(self.derived(a) for a in operands if a not in held)
            if len(held) == 1 and not others:
                return self._spread(node, held[0])
            if held and operator_name(node) in _SUMS:
                return self._sum(node, [a for a in held if self.source(a, self.carried(a)) is not None])
            reduced = any(isinstance(self.carried(a), Reduced) for a in operands)
            return Reduced() if reduced else None
        for argument in held:
            joined = self._joined_by(node, flows, argument)
            if joined is not None:
                return joined
        return self._combined(node, flows, operands)

    def _spread(self, node: fx.Node, argument: fx.Node) -> Any:
        held, shape = self.carried(argument), self.shape(node)
        if torch.broadcast_shapes(held.index[0].shape, shape) != torch.Size(shape):
            return None
        return Held(held.tensor, tuple(index.expand(shape) for index in held.index))

    def _joined_by(self, node: fx.Node, flows: Sequence[fx.Node], argument: fx.Node) -> Units | None:
        """A stored tensor meets a value: a gain or shift of each unit, or a table to be added."""
        value, held, shape = self.carried(flows[0]), self.carried(argument), self.shape(node)
        found = row(value.ids.expand(shape)) if value.ids.ndim <= len(shape) else None
        if found is None:
            return None
        indices = [index.expand(shape) for index in held.index]
        axes = [axis for axis, index in enumerate(indices) if varying(index)]
        name = operator_name(node)
        if name in _QUOTIENTS or (name in _SUMS and all(set(varying(indices[a])) <= set(found.dims) for a in axes)):
            pieces = []
            for axis in axes or [0]:
                places = at_place(indices[axis], found)
                if places is None:
                    return None
                pieces.append(Piece(held.tensor, writes=(axis, places)))
            kind = NodeKind.NORM if value.normalised and name in _QUOTIENTS else NodeKind.SCALE
            ids = self.nodes.add(kind, node, shape, found.dims, readings=self._input(value, found), pieces=pieces)
            return Units(ids)
        if name in _SUMS and self.source(argument, held) is not None:
            return self._sum(node, [*flows, argument])
        return None

    def _combined(self, node: fx.Node, flows: list[fx.Node], operands: Sequence[fx.Node]) -> Units | None:
        name, shape = operator_name(node), self.shape(node)
        first = self.carried(flows[0])
        if first.ids.ndim > len(shape):
            return None
        if len(flows) == 1:
            if any(isinstance(self.carried(a), Reduced) for a in operands) and name in _QUOTIENTS:
                return Units(first.ids.expand(shape), normalised=True)
            linear = name in _LINEAR_IN_UNITS or len(operands) > 1
            return Units(first.ids.expand(shape), first.normalised) if linear else self._activation(node, first, shape)
        second = self.carried(flows[1])
        if self._one_source(first, second):  # rotations of pairs, activations written out
            return self._same_source(node, (first, second), shape)
        if name in _SUMS:
            return self._sum(node, flows)
        if name in ("where", "masked_fill", "lerp"):
            return Units(first.ids.expand(shape))
        return self._met(node, NodeKind.PRODUCT, [("factor", first), ("factor", second)])

    def _one_source(self, first: Units, second: Units) -> bool:
        """Both operands come from one node, with nothing but activations in between."""
        bases = {self._base(n) for n in nodes_of(first.ids) | nodes_of(second.ids)}
        return len(bases) == 1 and (nodes_of(first.ids) == nodes_of(second.ids) or same_base(self, first, second))

    def _same_source(self, node: fx.Node, operands: Sequence[Units], shape: tuple[int, ...]) -> Units:
        """A formula of several steps is one activation, seen at its last step."""
        for value in operands:
            for index in nodes_of(value.ids):
                if self.nodes.found[index].kind is NodeKind.ACTIVATION:
                    self.nodes.found[index].at = node
                    return Units(value.ids.expand(shape), value.normalised)
        return Units(operands[0].ids.expand(shape), operands[0].normalised)

    def _base(self, index: int) -> int:
        node = self.nodes.found[index]
        return self._base(node.readings[0].node) if node.kind is NodeKind.ACTIVATION else index

    def _activation(self, node: fx.Node, value: Units, shape: tuple[int, ...]) -> Units | None:
        found = row(value.ids)
        if found is None:
            return None
        base = self.nodes.found[found.node]
        if base.kind is NodeKind.ACTIVATION and base.size == found.units.size and base.dims == found.dims:
            base.at = node  # a formula of several steps is one activation
            return value
        ids = self.nodes.add(NodeKind.ACTIVATION, node, shape, found.dims, readings=self._input(value, found))
        return Units(ids)

    def _input(self, value: Units, found: Row) -> list[Reading]:
        return [reading("input", found), *beside(value.ids, found)]

    def _sum(self, node: fx.Node, operands: Sequence[fx.Node]) -> Units | None:
        """A junction: the skip is the operand with the fewest contractions since the last junction."""
        shape = self.shape(node)
        rows = [(a, row(self.carried(a).ids.expand(shape))) for a in operands]
        known = [(a, found) for a, found in rows if found is not None]
        if not known:
            return None
        if len(known) == 1 or len({found.node for _, found in known}) == 1:
            return Units(self.carried(known[0][0]).ids.expand(shape))
        if len({found.units.size for _, found in known}) > 1:
            return None
        known.sort(key=lambda item: self.nodes.contractions(item[1].node))
        readings = self._flattened([reading("branch" if i else "skip", found) for i, (_, found) in enumerate(known)])
        readings += [r for a, found in known for r in beside(self.carried(a).ids.expand(shape), found)]
        ids = self.nodes.add(NodeKind.JUNCTION, node, shape, known[0][1].dims, readings=readings)
        return Units(ids)

    def _flattened(self, readings: list[Reading]) -> list[Reading]:
        """A sum is one junction however it is bracketed: sums of branches, and sums of tables, are opened."""
        skip, opened = readings[0], list[Reading]()
        kinds = [self.nodes.found[r.node].kind for r in readings]
        for r, kind in zip(readings[1:], kinds[1:], strict=True):
            inner = self.nodes.found[r.node].readings if kind is NodeKind.JUNCTION else [r]
            opened += [Reading("branch", i.node, i.units) for i in inner if i.role != "beside"]
        first = self.nodes.found[skip.node]
        tables = first.kind is NodeKind.JUNCTION and all(
            self.nodes.found[r.node].kind is NodeKind.SOURCE for r in [*first.readings, *opened]
        )
        return [*first.readings, *opened] if tables else [skip, *opened]

    def _met(self, node: fx.Node, kind: NodeKind, parts: Sequence[tuple[str, Units]]) -> Units | None:
        shape = self.shape(node)
        rows = [(role, row(value.ids.expand(shape))) for role, value in parts]
        dims = {found.dims for _, found in rows if found is not None}
        if any(found is None for _, found in rows) or len(dims) != 1:
            return None
        readings = [reading(role, found) for role, found in rows if found is not None]
        return Units(self.nodes.add(kind, node, shape, dims.pop(), readings=readings))

    def _contraction(self, node: fx.Node) -> Any:
        from otfuse.flow.linear import contraction

        return contraction(self, node)

    def _convolution(self, node: fx.Node) -> Any:
        from otfuse.flow.linear import convolution

        return convolution(self, node)

    def _attention(self, node: fx.Node) -> Any:
        from otfuse.flow.linear import attention

        return attention(self, node)

    def _norm(self, node: fx.Node) -> Any:
        value, shape = self._as_units(node.args[0]), self.shape(node)
        found = row(value.ids) if value is not None else None
        if found is None:
            return None
        batch = operator_name(node) in ("batch_norm", "instance_norm", "group_norm")
        pieces = []
        for argument in [*node.args[1:], *node.kwargs.values()]:
            held = self.carried(argument)
            if isinstance(held, Held):
                lead = 1 if batch else len(shape) - len(held.index)
                for axis, index in enumerate(held.index):
                    full = index.reshape([shape[d] if d == lead + axis else 1 for d in range(len(shape))]).expand(shape) \
                        if index.ndim == 1 else index.expand(shape)  # fmt: skip
                    places = at_place(full, found)
                    if places is not None:
                        pieces.append(Piece(held.tensor, writes=(axis, places)))
        return Units(
            self.nodes.add(NodeKind.NORM, node, shape, found.dims, readings=self._input(value, found), pieces=pieces)
        )

    def _lookup(self, node: fx.Node) -> Any:
        shape = self.shape(node)
        held = self.carried(node.args[0])
        if operator_name(node) == "embedding" and isinstance(held, Held):
            size, axis = held.index[1].shape[1], 1
            places = held.index[axis][0].numpy().copy() if size else None
            pieces = [Piece(held.tensor, writes=(axis, places))] if places is not None else []
            return Units(self.nodes.add(NodeKind.SOURCE, node, shape, (len(shape) - 1,), pieces=pieces))
        value = self._as_units(node.args[0])
        if value is None:
            return None
        places = _indexed(node, value.ids.ndim)
        if places is None or set(places) & set(unit_dims(value.ids)):
            return None
        ids = value.ids
        for d in sorted(places, reverse=True):
            ids = ids.select(d, 0)
        if places != list(range(len(places))):
            return None
        return Units(ids.expand(shape), value.normalised)

    def _reduction(self, node: fx.Node) -> Any:
        value, shape = self.carried(node.args[0]), self.shape(node)
        if not isinstance(value, Units):
            return value if isinstance(value, Reduced) else None
        kept, d = value.ids, 0
        gone = _reduced_dims(node, value.ids.ndim)
        if set(gone) & set(unit_dims(value.ids)):
            return Reduced()
        for d in sorted(gone, reverse=True):
            last = kept.shape[d] - 1
            kept = kept.narrow(d, last, 1) if len(shape) == value.ids.ndim else kept.select(d, last)
        return Units(kept, value.normalised)

    def _pool(self, node: fx.Node) -> Any:
        value, shape = self.carried(node.args[0]), self.shape(node)
        if not isinstance(value, Units):
            return None
        ids = value.ids
        for d in range(ids.ndim):
            if ids.shape[d] != shape[d]:
                ids = ids.narrow(d, 0, 1)
        return Units(ids.expand(shape))

    def _output(self, node: fx.Node) -> None:
        value = self._as_units(node)
        found = row(value.ids) if value is not None else None
        readings = [reading("input", found)] if found is not None else []
        shape = self.shape(node)
        self.nodes.add(NodeKind.OUTPUT, node, shape, found.dims if found else (), readings=readings)


def same_base(walk: Walk, first: Units, second: Units) -> bool:
    """Whether one operand is an activation of the other, unit by unit."""
    lows = (1 << 32) - 1
    shape = torch.broadcast_shapes(first.ids.shape, second.ids.shape)
    return bool(((first.ids.expand(shape) & lows) == (second.ids.expand(shape) & lows)).all()) or same_units(
        first, second
    )


def is_free(algebra: Algebra, leaf: int) -> bool:
    """Whether a leaf may hold units: nothing pins it, and it is not a mere repetition."""
    cell = algebra.cell(leaf)
    return not cell.hard and not cell.wild


def _each(moved: Any, wrap: Any) -> Any:
    return [wrap(item) for item in moved] if isinstance(moved, (list, tuple)) else wrap(moved)


def _indexed(node: fx.Node, rank: int) -> list[int] | None:
    name = operator_name(node)
    if name == "index":
        return [i for i, given in enumerate(node.args[1]) if given is not None]  # type: ignore[arg-type]
    if name in ("gather", "index_select"):
        return None if name == "gather" else [int(node.args[1]) % rank]  # type: ignore[call-overload]
    return None


def _reduced_dims(node: fx.Node, rank: int) -> list[int]:
    position = 2 if operator_name(node) in ("norm", "linalg_vector_norm") else 1
    given = node.args[position] if len(node.args) > position else node.kwargs.get("dim")
    if isinstance(given, bool) or given is None or given == []:
        return list(range(rank))
    return [int(d) % rank for d in ([given] if isinstance(given, int) else given)]  # type: ignore[union-attr]
