"""Running a program with any weights of its shapes, and looking at the values inside."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from otfuse.program.inputs import split_inputs
from otfuse.program.memory import written

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otfuse.program.export import Program
    from otfuse.program.inputs import Inputs


class Runner:
    """Interprets the live part of a program, forgetting every value after its last use.

    With ``double`` every cast to float32 inside the program becomes one to float64 (graph.md section 6, item 3).
    """

    def __init__(self, program: Program, *, double: bool = False) -> None:
        self._program, self._double = program, double
        live = program.live()
        self._steps = [
            node
            for node in program.graph.nodes
            if node.op == "call_function" and node in live and "_assert" not in str(node.target)
        ]
        self._attributes = [node for node in program.graph.nodes if node.op == "get_attr"]
        self._written = {value for node in self._steps for value in written(node) if value.op == "placeholder"}
        self._dies: dict[fx.Node, list[fx.Node]] = {}
        seen = set(program.outputs)
        for node in reversed(self._steps):
            last = [used for used in node.all_input_nodes if used not in seen]
            seen.update(last)
            self._dies[node] = last

    def __call__(self, weights: Mapping[str, torch.Tensor], inputs: Inputs | None = None) -> tuple[torch.Tensor, ...]:
        """The program's outputs for these weights (by first stored name) and inputs (the example's when None)."""
        env = self._start(weights, inputs)
        for _ in self._walk(env, {}):
            pass
        return tuple(env[node] for node in self._program.outputs)

    def watch(
        self, weights: Mapping[str, torch.Tensor], inputs: Inputs, wanted: Mapping[str, torch.Tensor | None]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Values of the program by name, each as soon as it exists; what the caller drops is not kept.

        ``wanted`` names them; with each, the places along dimension 1 that anything depends on (None: all). A linear
        layer leaves zeros at the others.
        """
        return self._walk(self._start(weights, inputs), wanted)

    def _start(self, weights: Mapping[str, torch.Tensor], inputs: Inputs | None) -> dict[fx.Node, Any]:
        program = self._program
        leaves = tree_leaves(split_inputs(program.inputs if inputs is None else inputs))
        values: dict[str, Any] = dict(zip(program.users, leaves, strict=True)) | program.constants
        device = next((w.device for w in weights.values()), torch.device("cpu"))
        for name, stored in program.parameters.items():
            values[name] = weights[stored]
        placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
        env = {placeholders[name]: self._ready(value, device) for name, value in values.items()}
        for node in self._written:  # into a copy: what was given stays as it is
            env[node] = env[node].clone()
        for node in self._attributes:
            env[node] = operator.attrgetter(str(node.target))(program.module)
        return env

    def _ready(self, value: Any, device: torch.device) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        value = value.to(device)
        if self._double and value.is_complex():
            return value.to(torch.complex128)
        return value.double() if self._double and value.is_floating_point() else value

    @torch.no_grad()
    def _step(self, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
        if not self._double:
            return node.target(*args, **kwargs)  # type: ignore[operator]
        args, kwargs = fx.node.map_aggregate((args, kwargs), raised)
        with default_dtype(torch.float64):
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def _part(self, node: fx.Node, env: dict[fx.Node, Any], places: torch.Tensor) -> torch.Tensor:
        read = node.all_input_nodes[0]
        value: torch.Tensor = env[read]
        places = places.to(value.device)
        made: torch.Tensor = self._step(node, env | {read: value.index_select(1, places)})
        return made.new_zeros(*value.shape[:-1], made.shape[-1]).index_copy_(1, places, made)

    def _walk(
        self, env: dict[fx.Node, Any], wanted: Mapping[str, torch.Tensor | None]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for node in self._steps:
            places = wanted.get(node.name)
            if places is None or node.target is not torch.ops.aten.linear.default:
                env[node] = self._step(node, env)
            else:
                env[node] = self._part(node, env, places)
            if node.name in wanted:
                yield node.name, env[node]
            for used in self._dies[node]:
                env.pop(used, None)


class Questions:
    """What forward asked of its inputs' values while it was traced, asked again of others."""

    def __init__(self, program: Program) -> None:
        self._answers = [answer for _, answer in program.asked]
        self._program = replace(program, outputs=tuple(node for node, _ in program.asked), parameters={})
        self._runner = Runner(self._program) if self._answers else None

    def answered_anew(self, inputs: Inputs) -> bool:
        """Whether any answer is another than the example's: then the program does not hold for these inputs."""
        if self._runner is None:
            return False
        try:
            found = self._runner({}, inputs)
        except (RuntimeError, IndexError, ValueError):  # of another size, which was asked before
            return True
        return not all(torch.equal(now.cpu(), then) for now, then in zip(found, self._answers, strict=True))

    def inputs(self) -> list[str]:
        """The inputs that answers depend on, as forward names them (else as the program does)."""
        names = dict(zip(self._program.users, self._program.inputs, strict=False))
        named = isinstance(self._program.inputs, Mapping)
        users = {node.name for node in self._program.live()} & set(self._program.users)
        return [str(names[user]) if named and user in names else user for user in self._program.users if user in users]


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What is made without a type has this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def raised(value: Any) -> Any:
    """A dtype as wide as float64 in the place of a narrower one; anything else as it is."""
    if not isinstance(value, torch.dtype):
        return value
    if value in (torch.complex64, torch.complex32):
        return torch.complex128
    return torch.float64 if value in (torch.float32, torch.float16, torch.bfloat16) else value
