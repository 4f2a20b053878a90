"""What the interpreter collects on its way through a program."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otfuse.core.space import Role
from otfuse.flow.algebra.axes import Algebra, Axis

if TYPE_CHECKING:
    from torch import fx

    from otfuse.flow.algebra.value import Value


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """Numbers made by ``origin`` that point into ``chosen``, one at every place; ``taken`` stands beside what they chose."""

    origin: fx.Node
    chosen: Axis
    places: tuple[Axis, ...]
    taken: tuple[Axis, ...]


@dataclass(slots=True)
class Facts:
    """``stored``: value of every stored tensor by name, ``live`` those an output depends on; ``records``: every value.

    ``choices``: where something was taken by number; ``contractions``: (axis summed over, axes aligned on both sides, axes that remain); ``unknown``: operators without a rule that read
    something derived from a parameter, with their nodes; ``env``: value(s) of every node.
    """

    algebra: Algebra = field(default_factory=Algebra)
    stored: dict[str, Value] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)
    records: list[Value] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    contractions: list[tuple[Axis, tuple[Axis, ...], tuple[Axis, ...]]] = field(default_factory=list)
    unknown: list[fx.Node] = field(default_factory=list)
    env: dict[fx.Node, Any] = field(default_factory=dict)
    _roles: dict[tuple[str, int], Role] = field(default_factory=dict)

    def set_role(self, tensor: str, dim: int | None, axis: Axis, role: Role) -> None:
        """The first use decides (a tied table is read as a table before it is read as a classifier)."""
        shape = self.stored[tensor].axes
        if dim is None:
            leaves = set(self.algebra.leaves(axis))
            dims = [d for d, own in enumerate(shape) if leaves & set(self.algebra.leaves(own))]
        else:
            dims = [dim]
        for d in dims:
            self._roles.setdefault((tensor, d), role)

    def role(self, tensor: str, dim: int) -> Role:
        """What the tensor does with the units along that axis; what nobody reads along it is produced."""
        return self._roles.get((tensor, dim), Role.PRODUCES)

    def unknown_names(self) -> Counter[str]:
        """Operators without a rule, and how often they were met."""
        return Counter(str(node.target) for node in self.unknown)
