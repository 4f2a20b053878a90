"""A program cut at some of its operators, so that many inputs can be led from one cut to the next, side by side.

What does not depend on the inputs (tables of positions, views of weights) is computed in every stretch from the weights as
they are then, once for all inputs; what an input leaves for later stretches is a plain table of values, which may wait
anywhere, on disk too.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from otfuse.program.inputs import split_inputs
from otfuse.program.memory import written
from otfuse.program.run import Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from otfuse.program.export import Program
    from otfuse.program.inputs import Inputs

Values = dict[str, Any]  # by the name of the program's node


class Cut(Runner):
    """Interprets a program stretch by stretch.

    ``groups`` name operators in the order of the program; those of one group are computed where the first of them is, so
    all of them must be computable there. Stretch ``i`` is what lies before group ``i`` and behind the group before it; the last
    stretch ends at the outputs. ``kept`` names values that are wanted until after group ``i``, beside what the program reads.
    """

    def __init__(
        self, program: Program, groups: Sequence[Sequence[str]], kept: Sequence[Iterable[str]] | None = None
    ) -> None:
        super().__init__(program)
        self._by_name = {node.name: node for node in program.graph.nodes}
        self._moving = moving(program)
        grouped = {name: i for i, names in enumerate(groups) for name in names}
        sections: list[list[Any]] = [[] for _ in range(2 * len(groups) + 1)]  # stretch 0, group 0, stretch 1, ...
        at = 0
        for node in (step for step in self._steps if step in self._moving):
            if node.name in grouped:
                at = max(at, grouped[node.name] + 1)
                sections[2 * grouped[node.name] + 1].append(node)
            else:
                sections[2 * at].append(node)
        self._sections = self._with_deaths(sections, kept or [()] * len(groups))

    def begin(self, inputs: Inputs, fixed: Fixed) -> Values:
        """What is there before the first stretch: the inputs, and copies of what the program writes into."""
        leaves = tree_leaves(split_inputs(inputs))
        given = dict(zip(self._program.users, leaves, strict=True))
        given |= {n.name: fixed[n.name] for n in self._moving if n.op == "placeholder" and n.name not in given}
        return {name: self._own(self._by_name[name], self._ready(v, fixed.device)) for name, v in given.items()}

    def stretch(self, at: int, values: Values, fixed: Fixed) -> None:
        """Advance ``values`` to just before group ``at``."""
        self._run(2 * at, values, fixed)

    def group(self, at: int, values: Values, fixed: Fixed) -> None:
        """Compute the operators of group ``at``."""
        self._run(2 * at + 1, values, fixed)

    def outputs(self, values: Values, fixed: Fixed) -> tuple[torch.Tensor, ...]:
        """The program's outputs, after the last stretch."""
        return tuple(values[n.name] if n.name in values else fixed[n.name] for n in self._program.outputs)

    def _with_deaths(
        self, sections: Sequence[Sequence[fx.Node]], kept: Sequence[Iterable[str]]
    ) -> list[tuple[list[str], list[_Step]]]:
        """Every section's steps with what each of them reads last; before them, what was kept for the group before."""
        seen = {node.name for node in self._program.outputs}
        found: list[Any] = []
        for i, steps in reversed(list(enumerate(sections))):
            own: list[_Step] = []
            for node in reversed(steps):
                last = [read.name for read in node.all_input_nodes if read.name not in seen and read in self._moving]
                seen.update(last)
                own.append(_Step(node, last))
            first = [n for n in kept[i // 2 - 1] if n not in seen] if i % 2 == 0 and i else []
            seen.update(first)
            found.append((first, own[::-1]))
        return found[::-1]

    @torch.no_grad()
    def _run(self, section: int, values: Values, fixed: Fixed) -> None:
        kept, steps = self._sections[section]
        for name in kept:
            values.pop(name, None)

        def held(node: fx.Node) -> Any:
            return values[node.name] if node.name in values else fixed[node.name]

        for step in steps:
            values[step.name] = step(held)
            for name in step.dead:
                values.pop(name, None)

    def compute(self, name: str, weights: Mapping[str, torch.Tensor], fixed: Fixed) -> Any:
        """A value that does not depend on the inputs, where ``fixed`` does not know it yet."""
        node = self._by_name[name]
        if node in self._stored:
            held = weights[self._stored[node]]
            return self._ready(held, held.device)
        if node.op == "placeholder":
            return self._ready(self._program.constants[name], fixed.device)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self._program.module)
        return self._step(node, {n: fixed[n.name] for n in node.all_input_nodes})


class _Step:
    """An operator ready to be called, with the names of what nothing reads behind it."""

    def __init__(self, node: fx.Node, dead: list[str]) -> None:
        self.name, self.dead = node.name, dead
        self._target: Any = node.target
        self._args, self._kwargs = node.args, dict(node.kwargs)
        given = [*node.args, *node.kwargs.values()]
        self._nested = any(isinstance(a, (list, tuple, dict, slice)) for a in given) or bool(node.kwargs)

    def __call__(self, held: Callable[[fx.Node], Any]) -> Any:
        if self._nested:
            args, kwargs = fx.node.map_arg((self._args, self._kwargs), held)
            return self._target(*args, **kwargs)
        return self._target(*[held(a) if isinstance(a, fx.Node) else a for a in self._args])


class Fixed:
    """What does not depend on the inputs, for these weights (by first stored name), computed when it is first asked for."""

    def __init__(self, cut: Cut, weights: Mapping[str, torch.Tensor], device: torch.device) -> None:
        self._cut, self._weights, self._found = cut, weights, dict[str, Any]()
        self.device = device

    def __getitem__(self, name: str) -> Any:
        if name not in self._found:
            self._found[name] = self._cut.compute(name, self._weights, self)
        return self._found[name]


def moving(program: Program) -> set[fx.Node]:
    """What depends on the inputs, and what shares memory with anything that is written into."""
    live, users = program.live(), set(program.users)
    changed = {memory for node in live for value in written(node) for memory in _memory(value)}
    found = set[Any]()
    for node in program.graph.nodes:
        given = node.op == "placeholder" and node.name in users
        if node in live and (given or any(a in found for a in node.all_input_nodes) or _memory(node) & changed):
            found.add(node)
    return found


def _memory(node: fx.Node) -> set[int]:
    """What holds a value, as the traced values tell."""
    return {
        leaf.untyped_storage()._cdata  # noqa: SLF001  # storages have no public identity on fake tensors
        for leaf in tree_leaves(node.meta.get("val"))
        if isinstance(leaf, torch.Tensor)
    }
