"""Which gains may go where: candidates read from the program, to be tried. Nothing here decides.

A gain goes on into the matrices that read what it multiplies, a norm's bias with it into their biases (or, where one has
none, it stays divided by the gain); or it goes back into the layer whose units it multiplies. Gains may be written as 1 + w.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from otfuse.core.space import Role
from otfuse.flow.groups.canonical import Change, Fill, Fold, Over, Plus, Times, Vector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import fx

    from otfuse.core.graph import FlowGraph
    from otfuse.core.space import Member, Space
    from otfuse.program.export import Program

Members: TypeAlias = "dict[tuple[str, Role], Member]"

_OFFSETS = (0.0, 1.0)  # the gain as it is, or 1 + w


def candidates(program: Program, graph: FlowGraph) -> list[list[Fold]]:
    """For every gain of a space that is not pinned, the folds that may make it neutral, best first."""
    stored, found = Stored(program), dict[str, list[Fold]]()
    for space in graph.spaces:
        for member in space.members if space.pinned is None else ():
            if member.role is Role.SCALES and member.batch_axis is None and member.tensor not in found:
                found[member.tensor] = list(_of_gain(stored, graph, space, member))
    return list(found.values())


class Stored:
    """What of a program is computed from stored tensors alone (a transpose, 1 + w), and from which."""

    def __init__(self, program: Program) -> None:
        self.outputs, live = set(program.outputs), program.live()
        self._names: dict[fx.Node, frozenset[str] | None] = {}  # None: inputs have a part in it
        for node in program.graph.nodes:
            if node.op == "placeholder":
                name = program.parameters.get(node.name)
                fixed = node.name not in program.users
                self._names[node] = frozenset({name} if name else ()) if fixed else None
            elif node in live:
                self._names[node] = self._of(node)

    def _of(self, node: fx.Node) -> frozenset[str] | None:
        names = [self._names[read] for read in node.all_input_nodes if read in self._names]
        return None if any(n is None for n in names) else frozenset().union(*(n for n in names if n is not None))

    def moving(self, node: fx.Node) -> bool:
        """Whether inputs have a part in a value that an output depends on."""
        return node in self._names and self._names[node] is None

    def beside(self, node: fx.Node) -> frozenset[str]:
        """The stored tensors that an operator reads beside values that inputs have a part in."""
        return frozenset().union(*(self._names.get(read) or () for read in node.all_input_nodes))

    def uses(self, name: str) -> list[fx.Node]:
        """The operators where a stored tensor, however prepared, meets values that inputs have a part in."""
        made = [node for node, names in self._names.items() if names and name in names]
        users = [user for node in made for user in node.users if self.moving(user)]
        return list(dict.fromkeys(users))


@dataclass(slots=True, eq=False)
class _Readers:
    """What reads a gain's values: matrices with the biases added to what they make (None: none), and the bias beside the gain."""

    matrices: dict[str, str | None] = field(default_factory=dict)
    bias: str | None = None


def _of_gain(stored: Stored, graph: FlowGraph, space: Space, gain: Member) -> Iterator[Fold]:
    members = {(m.tensor, m.role): m for m in space.members if m.batch_axis is None}
    readers = _readers(stored, graph, members, gain.tensor)
    if readers is not None and readers.matrices:
        yield from (fold for offset in _OFFSETS for fold in _onward(graph, members, gain, readers, offset))
    makers = _makers(stored, members, gain.tensor)
    if makers:
        for offset in _OFFSETS:
            changes = {name: _times(members[name, Role.PRODUCES], gain, offset) for name in makers}
            if all(changes.values()):
                yield Fold(gain.tensor, {n: c for n, c in changes.items() if c} | {gain.tensor: Fill(1.0 - offset)})


def _readers(stored: Stored, graph: FlowGraph, members: Members, gain: str) -> _Readers | None:
    """Everything that values multiplied by a gain reach first; None where that is not only matrices."""
    found, todo, seen = _Readers(), stored.uses(gain), set[object]()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        names = stored.beside(node) - {gain, found.bias}
        reading = {n for n in names if (n, Role.CONSUMES) in members}
        if reading:
            added = sorted(names - reading)
            found.matrices |= dict.fromkeys(reading, added[0] if len(added) == 1 else None)
            continue
        if names and (len(names) > 1 or found.bias is not None or not _is_bias(graph, members, gain, *names)):
            return None
        if node in stored.outputs:
            return None
        found.bias = next(iter(names), found.bias)
        todo += [user for user in node.users if stored.moving(user)]
    return found


def _is_bias(graph: FlowGraph, members: Members, gain: str, name: str) -> bool:
    return (name, Role.PRODUCES) in members and graph.shapes[name] == graph.shapes[gain]


def _makers(stored: Stored, members: Members, gain: str) -> frozenset[str] | None:
    """The tensors of the layer whose units a gain multiplies, where nothing but layout lies between."""
    uses = stored.uses(gain)
    if len(uses) != 1 or stored.beside(uses[0]) != {gain}:
        return None
    node = uses[0]
    while True:
        moving = [read for read in node.all_input_nodes if stored.moving(read)]
        if len(moving) != 1:
            return None
        node = moving[0]
        names = stored.beside(node)
        if names:
            return names if all((name, Role.PRODUCES) in members for name in names) else None


def _onward(graph: FlowGraph, members: Members, gain: Member, readers: _Readers, offset: float) -> Iterator[Fold]:
    changes: dict[str, Change] = {gain.tensor: Fill(1.0 - offset)}
    for name in readers.matrices:
        times = _times(members[name, Role.CONSUMES], gain, offset)
        if times is None:
            return
        changes[name] = times
    if readers.bias is None:
        yield Fold(gain.tensor, changes)
        return
    bias = members[readers.bias, Role.PRODUCES]
    pushed = {
        added: _plus(graph, members[name, Role.CONSUMES], added, bias) for name, added in readers.matrices.items()
    }
    if None not in pushed and all(pushed.values()):
        yield Fold(gain.tensor, changes | {k: v for k, v in pushed.items() if k and v} | {bias.tensor: Fill(0.0)})
    matched = _matched(bias, gain)
    if matched is not None:
        yield Fold(gain.tensor, changes | {bias.tensor: Over(matched[0], Vector(gain.tensor, matched[1], offset))})


def _times(member: Member, gain: Member, offset: float) -> Times | None:
    matched = _matched(member, gain)
    return None if matched is None else Times(member.axis, matched[0], Vector(gain.tensor, matched[1], offset))


def _plus(graph: FlowGraph, matrix: Member, added: str | None, bias: Member) -> Plus | None:
    matched, shape = _matched(matrix, bias), graph.shapes[matrix.tensor]
    if added is None or matched is None:
        return None
    rest = tuple(size for axis, size in enumerate(shape) if axis != matrix.axis)
    held = graph.shapes[added]
    if rest[: len(held)] != held:
        return None
    return Plus(matrix.tensor, matrix.axis, matched[0], Vector(bias.tensor, matched[1]))


def _matched(member: Member, vector: Member) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Positions of one member with those of a vector's that belong to the same units; None if they do not pair up."""
    own, its = member.positions, vector.positions
    if own.shape[:2] != its.shape[:2] or its.shape[2] not in (1, own.shape[2]):
        return None
    return own.reshape(-1), np.broadcast_to(its, own.shape).flatten()
