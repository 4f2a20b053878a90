"""One operator as a rule sees it: its arguments as abstract values, and the ways to relate them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from otfuse.core.space import Role
from otfuse.flow.algebra.axes import Axis, MisfitError
from otfuse.flow.algebra.value import Stacked, Value
from otfuse.flow.rules.facts import Choice
from otfuse.flow.rules.operators import operator_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otfuse.flow.algebra.axes import Algebra
    from otfuse.flow.rules.facts import Facts


class Op:
    """A node of the program, with its arguments read through the environment."""

    def __init__(self, node: fx.Node, env: dict[fx.Node, Any], facts: Facts) -> None:
        self.node, self.name, self.facts = node, operator_name(node), facts
        self.algebra: Algebra = facts.algebra
        self._env = env

    # -- arguments ---------------------------------------------------------------------------------------------------
    def arg(self, index: int, name: str = "", default: Any = None) -> Any:
        """An argument by position or keyword: a :class:`Value`, a sequence, or a plain number."""
        if index < len(self.node.args):
            return self._read(self.node.args[index])
        return self._read(self.node.kwargs.get(name, default))

    def value(self, index: int, name: str = "") -> Value:
        """An argument that must be a tensor."""
        found = self.arg(index, name)
        if not isinstance(found, Value):
            raise MisfitError(f"argument {index} of {self.name} is not a tensor")
        return found

    def values(self) -> list[Value]:
        """All tensor arguments, in order."""
        read = [self._read(a) for a in [*self.node.args, *self.node.kwargs.values()]]
        return [v for v in read if isinstance(v, Value)]

    def raw(self, index: int) -> Any:
        """What stands in the environment for an argument: may be a stack."""
        argument = self.node.args[index] if index < len(self.node.args) else None
        return self._env.get(argument) if isinstance(argument, fx.Node) else argument

    def arg_raw(self, index: int, default: Any) -> Any:
        """A plain argument (a number, a list of numbers), or the default."""
        return self.node.args[index] if index < len(self.node.args) else default

    def _read(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            found = self._env.get(argument)
            if isinstance(found, Stacked):
                found = self.collapse(found)
            if isinstance(found, Value) and not found.stored:
                return self._used(found)
            return found
        if isinstance(argument, (list, tuple)):
            return [self._read(a) for a in argument]
        return argument

    def _used(self, value: Value) -> Value:
        """One use of a value: its wild leaves have names of their own, by which this use may be tied and no other."""
        axes = tuple(self.algebra.fresh(value.axes))
        used = Value(axes, value.derived, value.points, value.tensor, value.dims)
        if any(self.algebra.cell(leaf).wild for axis in axes for leaf in axis):
            self.facts.records.append(used)
        return used

    # -- results -----------------------------------------------------------------------------------------------------
    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the (first) result."""
        return self.shapes[0]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of all results that are tensors."""
        held = self.node.meta.get("val")
        items = held if isinstance(held, (list, tuple)) else [held]
        return [tuple(int(n) for n in item.shape) for item in items if isinstance(item, torch.Tensor)]

    # -- relating ----------------------------------------------------------------------------------------------------
    def unify(self, axes: Sequence[Axis]) -> Axis:
        """All these axes are the same units; those of length one broadcast."""
        result: Axis = ()
        for axis in axes:
            result = self.algebra.unify(result, axis)
        return result

    def broadcast(self, values: Sequence[Value]) -> Value:
        """Aligned at the last dimension, every dimension unified."""
        rank = max(len(v.axes) for v in values)
        padded = [((),) * (rank - len(v.axes)) + v.axes for v in values]
        axes = tuple(self.unify([p[i] for p in padded]) for i in range(rank))
        points = next((v.points for v in values if v.points is not None), None)
        return Value(axes, any(v.derived for v in values), points)

    def contract(self, inner: Axis, aligned: Sequence[Axis] = (), kept: Sequence[Axis] = ()) -> None:
        """``inner`` is summed over.

        ``aligned`` are the axes on which both sides have the same index, ``kept`` all axes of the operands that remain.
        """
        self.facts.contractions.append((inner, tuple(aligned), tuple(kept)))

    def choose(self, made: fx.Node, chosen: Axis, places: Sequence[Axis], taken: Sequence[Axis]) -> None:
        """At ``places`` stands what the numbers of ``made`` pick along ``chosen``, with the axes ``taken`` beside it."""
        varying = [tuple(a for a in self.algebra.flat(axis) if not self.algebra.cell(a).wild) for axis in places]
        self.facts.choices.append(Choice(made, chosen, tuple(varying), tuple(taken)))

    def mix(self, value: Value, dims: Sequence[int]) -> None:
        """Values at different places along these dimensions meet: what stands beside cannot have moved by the place."""
        for d in dims:
            rest = [axis for i, axis in enumerate(value.axes) if i != d % len(value.axes)]
            self.contract(value.axes[d], aligned=rest, kept=rest)

    def role(self, value: Value, dim: int, role: Role) -> None:
        """If the value is a stored tensor (up to layout): what it does with the units along that dimension."""
        if value.tensor is not None:
            dims = value.dims or tuple(range(len(value.axes)))
            self.facts.set_role(value.tensor, dims[dim], value.axes[dim], role)

    def roles(self, value: Value, role: Role) -> None:
        """The same role for all dimensions."""
        for dim in range(len(value.axes)):
            self.role(value, dim, role)

    def collapse(self, stack: Stacked) -> Value:
        """A stack as one tensor: its pieces are the same units, its axis stays where it is."""
        axes = [self.unify([p.axes[i] for p in stack.pieces]) for i in range(len(stack.pieces[0].axes))]
        axes.insert(stack.dim, self.algebra.axis(len(stack.pieces), pin="stack"))
        return Value(tuple(axes), any(p.derived for p in stack.pieces))

    def cut(self, value: Value, dim: int, sizes: Sequence[int]) -> list[Value]:
        """The value cut into pieces along a dimension."""
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [self.sliced(value, dim, start, start + n) for start, n in zip(starts, sizes, strict=True)]

    def sliced(self, value: Value, dim: int, start: int, stop: int) -> Value:
        """Positions ``start`` to ``stop`` of a dimension."""
        axis = self.algebra.slice(value.axes[dim], start, stop)
        axes = (*value.axes[:dim], axis, *value.axes[dim + 1 :])
        return value.relaid(axes, range(len(axes)))

    def opaque(self, shape: Sequence[int], *, derived: bool) -> Value:
        """A tensor of which nothing is known."""
        return Value(tuple(self.algebra.axis(n, pin="opaque") for n in shape), derived)
