"""The gate: random elements of all spaces at once must leave the outputs of the original module unchanged."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from itertools import chain
from math import hypot, inf, isfinite
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from otfuse.core.space import Role
from otfuse.errors import GateError
from otfuse.flow.proof.act import Moves, chance, draw
from otfuse.flow.proof.drawn import drawn, real
from otfuse.program.export import quiet
from otfuse.program.inputs import examples, forward_keywords, resized, split_inputs, telling_number
from otfuse.program.outputs import main_outputs
from otfuse.program.run import Runner, default_dtype, fitting_threads, raised
from otfuse.program.state import evaluating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from otfuse.core.graph import FlowGraph
    from otfuse.core.space import Member
    from otfuse.program.export import Program

Equal: TypeAlias = "Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]"

_CONTROLS = 12  # members left out one at a time, until one shows
_SHOWN = 1e-2
_BLOCK = 1 << 22  # values of an output that are compared at a time: a table of all tokens is large in double


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


def verify_graph(
    model: nn.Module,
    program: Program,
    graph: FlowGraph,
    weights: Mapping[str, torch.Tensor] | None = None,
    *,
    seed: int = 0,
    equal: Equal | None = None,
) -> Verification:
    """The gate in float64 on randomised weights, every cast inside the module kept in float64.

    ``equal`` makes from any weights others that should compute the same (larger groups than permutations): they count too.

    Where the module takes another number of examples than it was traced on, or longer or shorter ones, the error counts
    there too: in the one number, what mixes examples with units may look like a factor of the units.
    """
    run, others = _Module(model, program, double=True), list[_Module]()
    for dim in (0, 1):
        known = telling_number([examples(program.inputs, dim), *chain(*program.shapes.values())])
        resize = replace(program, inputs=resized(program.inputs, known, dim))
        others.append(_Module(model, resize, double=True))
    with fitting_threads(program.inputs):
        return _verify(run, graph, drawn(model, program, seed, weights), seed, others, equal)


def verify_weights(
    model: nn.Module,
    program: Program,
    graph: FlowGraph,
    weights: Mapping[str, torch.Tensor] | None = None,
    *,
    seed: int = 0,
) -> Verification:
    """The gate on real weights: those given by first name, each read when it is needed, or else the model's own."""
    with fitting_threads(program.inputs):
        return _verify(_Module(model, program, double=False), graph, real(model, program, weights), seed)


def change(new: tuple[torch.Tensor, ...], old: tuple[torch.Tensor, ...]) -> float:
    """The largest relative change over all outputs; infinite if a value is not finite."""
    worst = 0.0
    for a, b in zip(new, old, strict=True):
        gap = size = 0.0
        for x, y in zip(a.reshape(-1).split(_BLOCK), b.reshape(-1).split(_BLOCK), strict=True):
            gap = hypot(gap, float((x.double() - y.double()).norm()))
            size = hypot(size, float(y.double().norm()))
        ratio = gap / max(size, 1e-300)
        worst = max(worst, ratio if ratio == ratio else float("inf"))  # noqa: PLR0124  # nan is not equal to itself
    return worst


def _verify(
    run: _Module,
    graph: FlowGraph,
    weights: Mapping[str, torch.Tensor],
    seed: int,
    others: Sequence[_Module] = (),
    equal: Equal | None = None,
) -> Verification:
    """One state at a time: it is moved tensor by tensor, and of the controls one tensor is another."""
    moved = Moves(draw(space, seed) for space in graph.spaces if space.pinned is None)
    state = {name: _working(weights[name], double=run.double) for name in weights}
    reference, before = run(state), [other.tried(state) for other in others]
    if any(bool(output.isnan().any()) for output in reference):
        raise GateError(
            "the model's own outputs hold values that are not numbers (NaN) on the inputs of the gate, so nothing can be "
            "proved; check its weights, or give other inputs (--data, example_inputs)"
        )
    gaps = [0.0]
    if equal is not None:
        state = dict(equal(weights))
        gaps.append(change(run(state), reference))
        state = {name: _working(weights[name], double=run.double) for name in weights}
    for name in moved.names:
        state[name] = moved(name, state[name])
    gaps += [change(run(state), reference)] if moved.names else []
    for other, old in zip(others, before, strict=True):
        new = other.tried(state) if old is not None else None
        gap = change(new, old) if new is not None and old is not None else inf
        gaps += [gap] if isfinite(gap) else []
    pairs, control = _left_out(graph, seed), 0.0
    for member in pairs:
        name = member.tensor
        less = moved(name, _working(weights[name], double=run.double), skip=member)
        control = max(control, change(run(state | {name: less}), reference))
        if control > _SHOWN:
            break
    return Verification(max(gaps), control if pairs else inf, graph)


def _left_out(graph: FlowGraph, seed: int) -> list[Member]:
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
    return [member for _, member in dict.fromkeys(ordered)][:_CONTROLS]


class _Module:
    """The original module as a function of its stored tensors."""

    def __init__(self, model: nn.Module, program: Program, *, double: bool) -> None:
        self._model, self._program, self.double = model, program, double
        self._whole = True

    def __call__(self, weights: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Outputs; where the module itself cannot run in float64 (a kernel lacks it), those of its program."""
        if self._whole:
            try:
                return self.itself(weights)
            except RuntimeError:
                if not self.double:
                    raise
                self._whole = False
        try:
            return Runner(self._program, double=True)(weights)
        except (RuntimeError, NotImplementedError) as error:
            raise GateError(
                f"{type(self._model).__name__} cannot run in float64, so nothing can be proved of it: "
                f"{str(error).splitlines()[0][:200]}"
            ) from None

    def tried(self, weights: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...] | None:
        """Outputs of the module, never of its program (which is of one size); None where it does not take its inputs."""
        try:
            return self.itself(weights)
        except Exception:  # noqa: BLE001  # whatever a module says to inputs that it does not take
            return None

    def itself(self, weights: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Outputs of the module; it raises what the module raises."""
        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}  # forward may write into them
        state = {
            name: weights[first].clone() if name in buffers else weights[first]
            for name, first in self._program.ties.items()
        }
        state = {name: buffer for name, buffer in buffers.items() if name not in state} | state
        device = next((w.device for w in weights.values()), torch.device("cpu"))
        args, kwargs = split_inputs(self._program.inputs)
        args, kwargs = tree_map(lambda x: x.to(device).clone() if isinstance(x, torch.Tensor) else x, (args, kwargs))
        args, kwargs, state = tree_map(lambda value: _working(value, double=self.double), (args, kwargs, state))
        kwargs = forward_keywords(self._model) | kwargs
        with (
            evaluating(self._model, self._program.caches), quiet(), torch.no_grad(), _in_double(self.double),
            torch.random.fork_rng(devices=[]),
        ):  # fmt: skip
            torch.manual_seed(0)  # a module that draws noise draws the same each time; the state outside is kept
            outputs = main_outputs(functional_call(self._model, state, args, kwargs, tie_weights=False))
        # in single precision rounding may exchange neighbours in an order: whole numbers are compared in double
        real = tuple(output for output in outputs if output.is_floating_point())
        return outputs if self.double or not real else real


def _working(value: Any, *, double: bool) -> Any:
    """A tensor in the type that the gate computes in: float64, or at least float32."""
    if not isinstance(value, torch.Tensor):
        return value
    half = value.dtype in (torch.float16, torch.bfloat16)
    return value.to(raised(value.dtype)) if double else value.float() if half else value


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
