"""The gate: random elements of all spaces at once must leave the outputs of the original module unchanged."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, replace
from itertools import chain
from math import isfinite, prod
from typing import TYPE_CHECKING, Any

import torch
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from otfuse.core.space import Group, Role
from otfuse.errors import GateError
from otfuse.flow.proof.act import act, chance, draw, exchange, generators
from otfuse.flow.proof.other_inputs import other_inputs
from otfuse.program.export import quiet
from otfuse.program.inputs import examples, forward_keywords, resized, split_inputs, telling_number
from otfuse.program.outputs import main_outputs
from otfuse.program.run import Runner, default_dtype, raised
from otfuse.program.state import evaluating

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from otfuse.core.graph import FlowGraph
    from otfuse.core.space import Member, Space
    from otfuse.flow.proof.act import Element
    from otfuse.program.export import Program
    from otfuse.program.inputs import Inputs

_CONTROLS = 12  # members left out one at a time, until one shows
_SHOWN = 1e-2
_SAME = 1e-9  # docs/method.md, 4.2
_LARGE = 1 << 28  # parameters; 2 GiB in float64


@dataclass(frozen=True, slots=True, eq=False)
class Verification:
    """What the gate found.

    ``error``: relative change of the outputs when every space moves; ``control``: the relative change when one member is
    left out, of the first of a few that shows (some have no effect, such as a layer that is still zero), else the
    largest of them; infinite if no space has two members.
    """

    error: float
    control: float
    graph: FlowGraph

    def require(self, tolerance: float) -> None:
        """GateError unless the error is below the tolerance and the control well above it."""
        if not self.error < tolerance:
            raise GateError(
                f"the derived flow graph is not exact: moving all spaces changes the outputs by {self.error:.1e} "
                f"(allowed: {tolerance:.0e}); run `otfuse inspect --verify` and report the model's class"
            )
        if not self.control > 10 * tolerance:
            raise GateError(
                f"the gate proves nothing here: leaving out a member changes the outputs by only {self.control:.1e}; "
                "check that the weights are trained and the inputs are not constant"
            )


def verify_graph(model: nn.Module, program: Program, graph: FlowGraph, *, seed: int = 0) -> Verification:
    """The gate in float64 on randomised weights, every cast inside the module kept in float64.

    Where the module takes another number of examples than it was traced on, or longer or shorter ones, the error counts
    there too: in the one number, what mixes examples with units may look like a factor of the units.
    """
    weights = randomised(model, program, seed)
    found = _verify(_Module(model, program, double=True), graph, weights, seed)
    moved = act(_drawn(graph, seed), weights)
    for dim in (0, 1):
        number = telling_number([examples(program.inputs, dim), *chain(*program.shapes.values())])
        run = _Module(model, replace(program, inputs=resized(program.inputs, number, dim)), double=True)
        try:
            error = change(run.itself(moved), run.itself(weights))
        except Exception:  # noqa: BLE001, S112  # whatever a module says to inputs that it does not take
            continue
        found = replace(found, error=max(found.error, error)) if isfinite(error) else found
    return found


def verify_weights(model: nn.Module, program: Program, graph: FlowGraph, *, seed: int = 0) -> Verification:
    """The gate on the real weights as they are."""
    weights = real(model, program)
    return _verify(_Module(model, program, double=False), graph, weights, seed)


class SpaceTrial:
    """Tries one space on the program in float64: generators of its group, accepted below 1e-9.

    It is tried on the example inputs and on others of their shapes, lest an example hides what a mask or a threshold
    lets through. Places where an answer is not a number (a row that a mask leaves nothing of) are not compared. Nothing
    is drawn until a space has to be tried.
    """

    def __init__(self, model: nn.Module, program: Program, seed: int = 0) -> None:
        self._model, self._program, self._seed = model, program, seed

    @functools.cached_property
    def _bench(self) -> _Bench:
        return _Bench(self._model, self._program, self._seed)

    def __call__(self, space: Space) -> bool | None:
        """Whether moving the space leaves the outputs unchanged.

        None where there are no numbers (the meta device), where the program cannot run in float64, and for the pairs of a
        large model, whose copy in float64 would not fit beside it: there the gate of `fuse` tells.
        """
        parameters = list(self._model.parameters())
        large = sum(p.numel() for p in parameters) > _LARGE and space.group is Group.ROTARY
        if large or any(p.is_meta for p in parameters):
            return None
        try:
            bench = self._bench
        except (RuntimeError, NotImplementedError):
            return None
        moves = [draw(space, self._seed)] if space.group is Group.ROTARY else generators(space, self._seed)
        held = bool(bench.known) and all(gap < _SAME for element in moves for gap in bench.changes(element))
        if (
            held and space.group is Group.ROTARY
        ):  # where pairs may be exchanged too, nothing was turned: nothing is proved
            return any(gap > _SAME for gap in bench.changes(exchange(space)))
        return held


class _Bench:
    """The program in float64 with weights drawn anew, and ``known``: inputs, with answers that are numbers somewhere."""

    def __init__(self, model: nn.Module, program: Program, seed: int) -> None:
        self._runner, self._weights = Runner(program, double=True), randomised(model, program, seed)
        self.known: list[tuple[Inputs, tuple[torch.Tensor, ...]]] = []
        self._keep(program.inputs)
        cpu = all(weight.device.type == "cpu" for weight in self._weights.values())
        for whole, parts in other_inputs(program.inputs, seed, new_numbers=cpu):
            if not self._works(whole):
                for part in parts:
                    self._works(part)

    def changes(self, element: Element) -> Iterator[float]:
        """The relative change of the answers that are numbers, one input after another."""
        moved = act([element], self._weights)
        for inputs, before in self.known:
            fine, after = [output.isfinite() for output in before], self._runner(moved, inputs)
            yield change(*(tuple(o[f] for o, f in zip(x, fine, strict=True)) for x in (after, before)))

    def _keep(self, inputs: Inputs) -> bool:
        outputs = self._runner(self._weights, inputs)
        seen = all(bool(output.isfinite().any()) for output in outputs)
        self.known += [(inputs, outputs)] if seen else []
        return seen

    def _works(self, inputs: Inputs) -> bool:
        try:
            return self._keep(inputs)
        except (RuntimeError, IndexError, ValueError, NotImplementedError):
            return False


def real(model: nn.Module, program: Program) -> dict[str, torch.Tensor]:
    """The stored tensors by first name."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: tensors[name].detach() for name, first in program.ties.items() if name == first}


def randomised(model: nn.Module, program: Program, seed: int) -> dict[str, torch.Tensor]:
    """Stored tensors in float64 with every value drawn anew: defaults such as ones and zeros hide mistakes.

    Gains keep their mean near one; buffers that are positive (running variances) are drawn positive.
    """
    parameters, drawn = {name for name, _ in model.named_parameters()}, dict[str, torch.Tensor]()
    for name, tensor in real(model, program).items():
        source = chance(seed, "weights", name)
        noise = torch.from_numpy(source.standard_normal(tuple(tensor.shape))).to(tensor.device)
        if name not in parameters:
            drawn[name] = noise.abs() + 0.5 if bool((tensor > 0).all()) else 0.3 * noise
        elif tensor.ndim > 1:
            fan = tensor.shape[1] if tensor.ndim == 3 else prod(tensor.shape[1:])  # a matrix per expert
            drawn[name] = noise / max(fan, 1) ** 0.5
        else:
            offset = 1.0 if tensor.numel() and abs(float(tensor.double().mean())) > 0.5 else 0.0
            drawn[name] = offset + 0.3 * noise
    return drawn


def change(new: tuple[torch.Tensor, ...], old: tuple[torch.Tensor, ...]) -> float:
    """The largest relative change over all outputs; infinite if a value is not finite."""
    worst = 0.0
    for a, b in zip(new, old, strict=True):
        ratio = float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-300))
        worst = max(worst, ratio if ratio == ratio else float("inf"))  # noqa: PLR0124  # nan is not equal to itself
    return worst


def _verify(run: _Module, graph: FlowGraph, weights: dict[str, torch.Tensor], seed: int) -> Verification:
    reference = run(weights)
    if any(bool(output.isnan().any()) for output in reference):
        raise GateError(
            "the model's own outputs hold values that are not numbers (NaN) on the inputs of the gate, so nothing can be "
            "proved; check its weights, or give other inputs (--data, example_inputs)"
        )
    elements = _drawn(graph, seed)
    error = change(run(act(elements, weights)), reference) if elements else 0.0
    pairs, control = _left_out(graph, seed), 0.0
    for space, member in pairs:
        control = max(control, change(run(act([draw(space, seed)], weights, skip=member)), reference))
        if control > _SHOWN:
            break
    return Verification(error, control if pairs else float("inf"), graph)


def _drawn(graph: FlowGraph, seed: int) -> list[Element]:
    return [draw(space, seed) for space in graph.spaces if space.pinned is None]


def _left_out(graph: FlowGraph, seed: int) -> list[tuple[Space, Member]]:
    """Members to leave out: matrices, because a key's bias has no effect under softmax.

    The first and the last of the space with most members come first: what fills a stream and what empties it shows even
    where all layers between are still zero. Then others of such spaces, then any.
    """
    pairs = [
        (space, member)
        for space in graph.free
        for member in space.members
        if len(space.members) > 1 and len(graph.shapes[member.tensor]) > 1 and member.role is not Role.SCALES
    ]
    mixed = [pairs[i] for i in chance(seed, "controls").permutation(len(pairs))]
    known = sorted(mixed, key=lambda pair: -len(pair[0].members))[: _CONTROLS // 2]
    stream = [pair for pair in pairs if pair[0] is known[0][0]] if known else []
    ordered = [*stream[:1], *stream[-1:], *known, *mixed]
    return list(dict.fromkeys(ordered))[:_CONTROLS]


class _Module:
    """The original module as a function of its stored tensors."""

    def __init__(self, model: nn.Module, program: Program, *, double: bool) -> None:
        self._model, self._program, self._double = model, program, double
        self._whole = True

    def __call__(self, weights: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Outputs; where the module itself cannot run in float64 (a kernel lacks it), those of its program."""
        if self._whole:
            try:
                return self.itself(weights)
            except RuntimeError:
                if not self._double:
                    raise
                self._whole = False
        try:
            return Runner(self._program, double=True)(weights)
        except (RuntimeError, NotImplementedError) as error:
            raise GateError(
                f"{type(self._model).__name__} cannot run in float64, so nothing can be proved of it: "
                f"{str(error).splitlines()[0][:200]}"
            ) from None

    def itself(self, weights: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Outputs of the module, never of its program (which is of one size); it raises what the module raises."""
        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}  # forward may write into them
        state = {
            name: weights[first].clone() if name in buffers else weights[first]
            for name, first in self._program.ties.items()
        }
        state = {name: buffer for name, buffer in buffers.items() if name not in state} | state
        device = next((w.device for w in weights.values()), torch.device("cpu"))
        args, kwargs = split_inputs(self._program.inputs)
        args, kwargs = tree_map(lambda x: x.to(device).clone() if isinstance(x, torch.Tensor) else x, (args, kwargs))
        if self._double:
            args, kwargs, state = tree_map(_double, (args, kwargs, state))
        kwargs = forward_keywords(self._model) | kwargs
        with (
            evaluating(self._model, self._program.caches), quiet(), torch.no_grad(), _in_double(self._double),
            torch.random.fork_rng(devices=[]),
        ):  # fmt: skip
            torch.manual_seed(0)  # a module that draws noise draws the same each time; the state outside is kept
            outputs = main_outputs(functional_call(self._model, state, args, kwargs, tie_weights=False))
        # in single precision rounding may exchange neighbours in an order: whole numbers are compared in double
        real = tuple(output for output in outputs if output.is_floating_point())
        return outputs if self._double or not real else real


def _double(value: Any) -> Any:
    return value.to(raised(value.dtype)) if isinstance(value, torch.Tensor) else value


@contextlib.contextmanager
def _in_double(on: bool) -> Iterator[None]:  # noqa: FBT001  # a switch is what it is
    if not on:
        yield
        return
    with default_dtype(torch.float64), _NoSingle():  # type: ignore[no-untyped-call]
        yield


class _NoSingle(TorchDispatchMode):
    """Every operator that is asked for float32 gives float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(raised, (args, kwargs or {}))
        return func(*args, **kwargs)
