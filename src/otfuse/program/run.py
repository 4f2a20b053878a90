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
    from collections.abc import Iterable, Iterator

    from otfuse.program.export import Program
    from otfuse.program.inputs import Inputs


_FEW = 256  # values of all inputs


class Runner:
    """Interprets the live part of a program, forgetting every value after its last use.

    Weights are taken from the mapping given when a step first needs them: it may read each from disk at every access.
    With ``double`` every cast to float32 inside the program becomes one to float64 (docs/method.md, 3.1).
    """

    def __init__(self, program: Program, *, double: bool = False) -> None:
        self._program, self._double = program, double
        live = program.live()
        self._steps = [
            node
            for node in program.graph.nodes
            if node.op == "call_function" and node in live and "_assert" not in str(node.target)
        ]
        self._stored = {
            node: program.parameters[node.name]
            for node in program.graph.nodes
            if node.op == "placeholder" and node.name in program.parameters
        }
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
        for _ in self._walk(env, weights, {}):
            pass
        self._load(self._program.outputs, env, weights)
        return tuple(env[node] for node in self._program.outputs)

    def watch(
        self, weights: Mapping[str, torch.Tensor], inputs: Inputs, wanted: Mapping[str, torch.Tensor | None]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Values of the program by name, each as soon as it exists; nothing is computed after the last.

        What the caller drops is not kept.

        ``wanted`` names them; with each, the places along dimension 1 that anything depends on (None: all). A linear
        layer leaves zeros at the others.
        """
        return self._walk(self._start(weights, inputs), weights, wanted)

    def _start(self, weights: Mapping[str, torch.Tensor], inputs: Inputs | None) -> dict[fx.Node, Any]:
        """Every value that is there before the first step."""
        env = self._first(weights)
        device = next((weight.device for weight in env.values()), torch.device("cpu"))
        return env | self._given(inputs, device)

    def _first(self, weights: Mapping[str, torch.Tensor]) -> dict[fx.Node, Any]:
        """The weight that is needed first: it tells the device."""
        env: dict[fx.Node, Any] = {}
        reads = (node for step in self._steps for node in step.all_input_nodes if node in self._stored)
        self._load([node for node in [next(reads, None)] if node is not None], env, weights)
        return env

    def _given(self, inputs: Inputs | None, device: torch.device) -> dict[fx.Node, Any]:
        """Inputs (the example's when None), constants and attributes."""
        program = self._program
        leaves = tree_leaves(split_inputs(program.inputs if inputs is None else inputs))
        values: dict[str, Any] = dict(zip(program.users, leaves, strict=True)) | program.constants
        env: dict[fx.Node, Any] = {}
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in values:
                env[node] = self._own(node, self._ready(values[node.name], device))
        return env | {node: operator.attrgetter(str(node.target))(program.module) for node in self._attributes}

    def _load(self, nodes: Iterable[fx.Node], env: dict[fx.Node, Any], weights: Mapping[str, torch.Tensor]) -> None:
        for node in nodes:
            if node in self._stored and node not in env:
                held = weights[self._stored[node]]
                env[node] = self._own(node, self._ready(held, held.device))

    def _own(self, node: fx.Node, value: Any) -> Any:
        """What is written into is a copy: what was given stays as it is."""
        return value.clone() if node in self._written else value

    def _ready(self, value: Any, device: torch.device) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        value = value.to(device)
        if self._double and value.is_complex():
            return value.to(torch.complex128)
        return value.double() if self._double and value.is_floating_point() else value

    @torch.no_grad()
    def _step(self, node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
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
        self, env: dict[fx.Node, Any], weights: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor | None]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        left = set(wanted)
        for node in self._steps:
            self._load(node.all_input_nodes, env, weights)
            places = wanted.get(node.name)
            if places is None or node.target is not torch.ops.aten.linear.default:
                env[node] = self._step(node, env)
            else:
                env[node] = self._part(node, env, places)
            if node.name in wanted:
                yield node.name, env[node]
                left.discard(node.name)
                if not left:  # the outputs over a whole vocabulary can be most of the work
                    return
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
def fitting_threads(inputs: Inputs) -> Iterator[None]:
    """One thread inside if the inputs are small: operators on a few tokens gain nothing from a second one.

    Beside other work threads that wait for each other burn processor time: tracing a model of 250M parameters took 44 s of it
    instead of 17.
    """
    threads = torch.get_num_threads()
    values = sum(leaf.numel() for leaf in tree_leaves(split_inputs(inputs)) if isinstance(leaf, torch.Tensor))
    torch.set_num_threads(1 if values <= _FEW else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
