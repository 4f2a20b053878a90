"""A module as a program: a graph of operators over named parameters, which can be read and run.

``torch.export`` with ``strict=False``, static shapes and no decompositions keeps composite operators (linear, norms,
attention) whole (docs/method.md, 3.1). Parameters are inputs of the program, so one program serves every model of the
same class and sizes.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_leaves

from otfuse.errors import TraceError
from otfuse.program.angles import only_angles
from otfuse.program.inputs import (
    Inputs,
    example_inputs,
    examples,
    forward_keywords,
    resized,
    split_inputs,
    telling_number,
)
from otfuse.program.main import Main
from otfuse.program.memory import clashes, written
from otfuse.program.runs import plain_runs
from otfuse.program.state import Slot, evaluating, held, slots

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """What a module computes for one shape of inputs.

    ``parameters`` maps placeholders to the (first) stored names of parameters and persistent floating buffers;
    ``constants`` holds the other placeholders' tensors; ``users`` are the placeholders of the inputs, in the order of
    ``inputs``; ``outputs`` are the nodes that predictions are made of; ``ties`` maps every stored name to its first;
    ``caches`` are attributes that a forward pass fills with what it computed: without them it computes the same.
    ``logits``: which outputs are logits of a distribution over their last dimension. ``asked`` are nodes whose values forward asked for, with the answers that the example gave: the program holds for inputs
    that give the same. ``buffers`` are the first names of stored tensors that are no parameters.
    """

    graph: fx.Graph
    module: fx.GraphModule
    parameters: dict[str, str]
    constants: dict[str, torch.Tensor]
    users: tuple[str, ...]
    outputs: tuple[fx.Node, ...]
    inputs: Inputs
    ties: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    caches: tuple[Slot, ...] = ()
    asked: tuple[tuple[fx.Node, torch.Tensor], ...] = ()
    buffers: frozenset[str] = frozenset()
    logits: tuple[bool, ...] = ()

    def live(self) -> set[fx.Node]:
        """Nodes that an output depends on: dead code must not constrain.

        What is read after a write is named by the operator that wrote (memory.py).
        """
        todo, live = list(self.outputs), set[fx.Node]()
        while todo:
            node = todo.pop()
            if node in live:
                continue
            live.add(node)
            todo += node.all_input_nodes
        return live


class Told:
    """What a traced run tells beside the program: answers to what forward asked of its inputs, which outputs are logits."""

    answers: Sequence[torch.Tensor] = ()
    logits: tuple[bool, ...] = ()


def export(model: nn.Module, inputs: Inputs | None = None) -> Program:
    """Trace a module (in evaluation mode; it is left as it was) on example inputs, made from its config when None.

    A single example is repeated where the module takes several: what mixes examples with units cannot be told from what
    moves units where there is one example only. Works on the meta device. Raises TraceError naming the module and the
    reason.
    """
    inputs = example_inputs(model) if inputs is None else inputs
    if examples(inputs) == 1:
        with contextlib.suppress(TraceError):
            return _traced(model, resized(inputs, telling_number(chain(*stored(model)[1].values()))))
    return _traced(model, inputs)


def _traced(model: nn.Module, inputs: Inputs) -> Program:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    args, kwargs = split_inputs(inputs)
    args = tuple(_to(value, device) for value in args)
    kwargs = {name: _to(value, device) for name, value in kwargs.items()}
    try:
        exported, caches, told = _exported(model, args, kwargs)
    except Exception as error:
        _refuse_unfit(model, args, kwargs)
        raise TraceError(
            f"{type(model).__name__} cannot be traced by torch.export: {_reason(error)}; "
            "give other example_inputs, or rewrite that part of forward without branches on data"
        ) from error
    _refuse_hidden_writes(model, _clashes(exported))
    program = _program(model, exported, inputs, caches, told)
    _refuse_left_over(model, program)
    _refuse_unknown_sizes(model, program)
    return program


def _reason(error: Exception) -> str:
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line.strip()[:300]


def _refuse_unfit(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """TraceError in the module's own words if it does not run on these inputs either."""
    if any(p.is_meta for p in model.parameters()):
        return
    try:
        with evaluating(model), quiet(), torch.no_grad():
            model(*args, **(forward_keywords(model) | kwargs))
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} does not run on these inputs: {_reason(error)}; give other example_inputs"
        ) from error


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Slot, ...], Told]:
    """The program as torch has it; the caches; and what the traced run told.

    What an earlier forward pass left must not pass for a constant: an attribute with a tensor is a cache if forward, where
    it is missing, makes it again. Only a model of a library (it has a config) is answered: a module of the user's own that
    branches on data is the user's to mend.
    """
    example = [_real(leaf) for leaf in tree_leaves((args, kwargs))] if hasattr(model, "config") else None

    def run(without: tuple[Slot, ...]) -> tuple[Any, set[Slot], Told]:
        filled, told = set[Slot](), Told()

        def after(answers: list[torch.Tensor], logits: tuple[bool, ...]) -> None:
            filled.update(slot for slot in without if held(model, slot))
            told.answers, told.logits = answers, logits

        main = Main(model, after, example)
        with evaluating(model, without), quiet(), torch.no_grad(), _unprinted():
            exported = torch.export.export(main, args, kwargs, strict=False)
            found = _clashes(exported)
            if found and all(named for _, named in found):  # writes through views are made plain
                exported = exported.run_decompositions({})
        return exported, filled, told

    best, caches = None, tuple[Slot, ...]()
    for group in slots(model):
        for missing in (group, [slot._replace(absent=True) for slot in group]):
            with contextlib.suppress(Exception):  # whatever forward makes of a constant that is missing
                tried = run((*caches, *missing))
                if tried[1] & set(missing):
                    best, caches = tried, (*caches, *missing)
                    break
    exported, _, answers = best or run(())
    return exported, caches, answers


def _refuse_left_over(model: nn.Module, program: Program) -> None:
    """TraceError if a tensor stands in the place of the weights that it was computed from, and is no cache."""
    live = {program.parameters[node.name] for node in program.live() if node.name in program.parameters}
    caches = {slot[:2] for slot in program.caches}
    for slot in (slot for group in slots(model) for slot in group if slot[:2] not in caches):
        own = model.get_submodule(slot.module).named_parameters(slot.module, recurse=False)
        idle = next((name for name, _ in own if program.ties[name] not in live), None)
        read = [tensor for tensor in held(model, slot) if any(tensor is value for value in program.constants.values())]
        if any(tensor.grad_fn is not None or (idle is not None and tensor.is_floating_point()) for tensor in read):
            raise TraceError(
                f"{type(model).__name__} cannot be traced: {f'{slot.module}.{slot.name}'.strip('.')} holds what an earlier forward pass "
                f"computed{f' from {idle}' if idle is not None else ''}, and without it forward does not run; "
                "give the model as it is before it has been run"
            )


def _refuse_unknown_sizes(model: nn.Module, program: Program) -> None:
    """TraceError if the size of a value depends on the data: its axes cannot be told apart."""
    for node in program.live():
        held = node.meta.get("val")
        values = [v for v in (held if isinstance(held, (list, tuple)) else [held]) if isinstance(v, torch.Tensor)]
        if any(not isinstance(n, int) for value in values for n in value.shape):
            raise TraceError(
                f"{type(model).__name__} cannot be traced: the size of what {node.target} gives depends on the data; "
                "give other example_inputs, or rewrite that part of forward with fixed sizes"
            )


def _refuse_hidden_writes(model: nn.Module, found: list[tuple[str, bool]]) -> None:
    """TraceError if memory that is written into is read under another name that nothing told of."""
    for clause, _ in found:
        raise TraceError(
            f"{type(model).__name__} cannot be traced: {clause}, which is the same memory, and PyTorch does not say so; "
            "write `x = x + y` instead of `x += y` there"
        )


def _clashes(exported: Any) -> list[tuple[str, bool]]:
    if not any(map(written, exported.graph.nodes)):
        return []
    module = copy.deepcopy(exported.graph_module)  # values keep their memory; the program's own regions stay
    _inline_modes(module)
    return list(clashes(module.graph))


def _program(model: nn.Module, exported: Any, inputs: Inputs, caches: tuple[Slot, ...], told: Told) -> Program:
    ties, shapes = stored(model)
    parameters, constants, users = dict[str, str](), dict[str, torch.Tensor](), list[str]()
    untrained: dict[str, torch.Tensor] = {}
    for spec in exported.graph_signature.input_specs:
        name, target = spec.arg.name, (spec.target or "").removeprefix("model.")
        if spec.kind is InputKind.USER_INPUT:
            users.append(name)
        elif target in ties:
            parameters[name] = ties[target]
            if not exported.state_dict[spec.target].requires_grad:
                untrained[name] = exported.state_dict[spec.target]
        elif spec.kind in (InputKind.BUFFER, InputKind.PARAMETER):  # one that is not real, or not saved
            constants[name] = exported.state_dict.get(spec.target, exported.constants.get(spec.target))
        else:
            constants[name] = exported.constants[spec.target]
    graph = exported.graph_module.graph
    _inline_modes(exported.graph_module)
    program = Program(
        graph=graph,
        module=exported.graph_module,
        parameters=parameters,
        constants=constants,
        users=tuple(users),
        outputs=(),
        inputs=inputs,
        ties=ties,
        shapes=shapes,
        caches=caches,
        buffers=frozenset(ties[name] for name, _ in model.named_buffers() if name in ties),
    )
    _hold_angles(program, untrained)
    plain_runs(graph, constants)
    return replace(program, **_results(exported, told))


def _results(exported: Any, told: Told) -> dict[str, Any]:
    """What comes out: predictions, then what was asked."""
    given: Any = next(node for node in exported.graph_module.graph.nodes if node.op == "output").args[0]
    kinds = [spec.kind for spec in exported.graph_signature.output_specs]
    results = [node for node, kind in zip(given, kinds, strict=True) if kind is OutputKind.USER_OUTPUT]
    count = len(results) - len(told.answers)
    asked = zip(results[count:], told.answers, strict=True)
    outputs = [(n, logits) for n, logits in zip(results[:count], told.logits, strict=True) if isinstance(n, fx.Node)]
    return {
        "outputs": tuple(node for node, _ in outputs),
        "logits": tuple(logits for _, logits in outputs),
        "asked": tuple((node, answer) for node, answer in asked if isinstance(node, fx.Node)),
    }


def _hold_angles(program: Program, untrained: dict[str, torch.Tensor]) -> None:
    """What is stored but only turns pairs becomes a constant."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    moving = {nodes[name] for name in (*program.parameters, *program.users) if _is_floating(nodes[name])}
    for place in only_angles([nodes[name] for name in untrained], moving):
        name = program.parameters.pop(place.name)
        program.constants[place.name] = untrained[place.name].detach()
        for other in [other for other, first in program.ties.items() if first == name]:
            del program.ties[other], program.shapes[other]


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def _inline_modes(module: fx.GraphModule) -> None:
    """Put the operators of `with torch.no_grad():` (or enable_grad, or autocast off) where they are called.

    They compute the same inside, in evaluation; autocast that is on changes numbers and stays.
    """
    graph = module.graph
    for node in list(graph.nodes):
        name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
        at = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}.get(name)
        if at is None or (at == 4 and node.args[2]):
            continue
        inner = getattr(module, str(node.args[at].target))
        _inline_modes(inner)
        if any(step.op == "get_attr" for step in inner.graph.nodes):
            continue
        places = [step for step in inner.graph.nodes if step.op == "placeholder"]
        with graph.inserting_before(node):
            results: Any = graph.graph_copy(inner.graph, dict(zip(places, node.args[at + 1 :], strict=True)))
        for user in list(node.users):  # every use picks one result
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)


def stored(model: nn.Module) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Every stored floating tensor: name -> the first name of the same tensor, and name -> shape.

    Parameters, and buffers that are persistent and floating. Identity is that of the tensor object: pointers are zero
    on the meta device.
    """
    skipped = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set  # noqa: SLF001  # torch has no public name for it
    }
    first, ties, shapes = dict[int, str](), dict[str, str](), dict[str, tuple[int, ...]]()
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        if name not in skipped and tensor.is_floating_point():
            ties[name] = first.setdefault(id(tensor), name)
            shapes[name] = tuple(tensor.shape)
    return ties, shapes


def _unprinted() -> contextlib.redirect_stderr[io.StringIO]:
    """PyTorch prints the whole program where it cannot go on."""
    return contextlib.redirect_stderr(io.StringIO())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Libraries below do not speak to the user."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _real(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, torch.Tensor) and not value.is_meta else None


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
