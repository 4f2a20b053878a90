"""Models as sides of a fusion: traced once where they share a program, checked, matched."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves

from otfuse.errors import TraceError, UsageError
from otfuse.flow.derive import derive
from otfuse.flow.match import require_match
from otfuse.flow.proof.gate import verify_weights
from otfuse.flow.proof.trial import SpaceTrial
from otfuse.fusion.differences import require_same_functions
from otfuse.measure.probe import Side
from otfuse.program.export import export
from otfuse.program.inputs import examples, resized, split_inputs
from otfuse.program.state import copied

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from otfuse.flow.proof.gate import Verification
    from otfuse.fusion.differences import Described
    from otfuse.program.export import Program
    from otfuse.program.inputs import Inputs
    from otfuse.program.weights import Weights

GATE_TOLERANCE = 1e-4  # float32, real weights: rounding of deep models stays below
_GATE_EXAMPLES = 4
_TRIAL_EXAMPLES = 8  # two choose too few experts to tell
_TRIAL_TOKENS = 32
_LABELS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "id2label", "label2id")


@dataclass(slots=True, eq=False)
class Parent:
    """A model that goes into a fusion.

    ``module`` has its class and config, and perhaps no weights of its own (None: only averaged, no class is known);
    ``weights`` are all its stored floating tensors by every name. ``lacking`` are tensors that it has not and the anchor has alone.
    """

    name: str
    module: Any
    weights: Weights
    described: Described
    lacking: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def traced(parent: Parent, inputs: Inputs | None) -> Side:
    """A model's program, flow graph and stored tensors."""
    program = export(parent.module, inputs)
    few = functools.cache(lambda: _few(parent.module, program))
    graph = derive(program, holds=SpaceTrial(parent.module, few, parent.weights))
    return Side(program, graph, parent.weights, few)


def _few(model: nn.Module, program: Program) -> Program:
    """The program traced on a few examples of a few tokens, where it was traced on more: trials need no more, and cost as much as they.

    Shorter texts only where they lead through the same operators.
    """
    given = program.inputs
    inputs = resized(given, min(_TRIAL_EXAMPLES, examples(given)))
    if _is_text(inputs) and examples(inputs, 1) > _TRIAL_TOKENS:
        with contextlib.suppress(TraceError):
            short = export(model, resized(inputs, _TRIAL_TOKENS, 1))
            if _operators(short) == _operators(program):
                return short
    if examples(given) <= _TRIAL_EXAMPLES:
        return program
    try:
        return export(model, inputs)
    except TraceError:
        return program


def _is_text(inputs: Inputs) -> bool:
    first = next((value for value in tree_leaves(split_inputs(inputs)) if isinstance(value, torch.Tensor)), None)
    return first is not None and first.ndim == 2 and not first.is_floating_point()


def _operators(program: Program) -> list[tuple[str, str]]:
    return [(node.name, str(node.target)) for node in program.graph.nodes]


def sides(parents: Sequence[Parent], inputs: Inputs | None, aside: Callable[[Side], frozenset[str]]) -> list[Side]:
    """All models as sides, anchor first; one that computes the same as the anchor shares its program.

    Raises MatchError if a source's forward pass differs from the anchor's, but for the tensors that are set ``aside``.
    """
    anchor = traced(parents[0], inputs)
    found = [anchor]
    for parent in parents[1:]:
        names = (parents[0].name, parent.name)
        if _same_function(parents[0].module, parent.module) and _ties(parents[0]) == _ties(parent):
            side = Side(anchor.program, anchor.graph, parent.weights, anchor.few)
        else:
            side = traced(parent, inputs)
            require_match(anchor.graph, side.graph, names, aside=aside(anchor))
            require_same_functions(anchor, side, names)
        found.append(side)
    return found


def check(parents: Sequence[Parent], found: Sequence[Side], seed: int) -> Verification:
    """The gate on real weights, once per program; GateError if one fails. Returns the anchor's."""
    first: Verification | None = None
    seen: list[Program] = []
    for parent, side in zip(parents, found, strict=True):
        if side.program in seen:
            continue
        seen.append(side.program)
        few = min(_GATE_EXAMPLES, examples(side.program.inputs))
        program = replace(side.program, inputs=resized(side.program.inputs, few))
        verification = verify_weights(parent.module, program, side.graph, parent.weights, seed=seed)
        verification.require(GATE_TOLERANCE)
        first = first or verification
    assert first is not None  # there is always an anchor
    return first


def workable(model: nn.Module) -> nn.Module:
    """The model itself, or a float32 copy of one in half precision: maps are found and tensors mixed at full precision."""
    if any(p.is_meta for p in model.parameters()):
        raise UsageError(
            f"{type(model).__name__} is on the meta device and has no weights to fuse: load its weights first"
        )
    kinds = {p.dtype for p in model.parameters()}
    if kinds <= {torch.float32, torch.float64}:
        return model
    return copied(model, dtype=torch.float32)


def _same_function(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules run the same code on the same sizes, so that one program serves both."""
    if type(one) is not type(other) or str(one) != str(other):
        return False
    if _settings(one) != _settings(other):
        return False
    shapes = [[(name, p.shape, p.dtype) for name, p in m.state_dict().items()] for m in (one, other)]
    return hasattr(one, "config") and shapes[0] == shapes[1]


def _ties(parent: Parent) -> set[frozenset[str]]:
    """Which names are one tensor: files may hold a head of their own where the config ties it."""
    return set(map(frozenset, parent.weights.alike.values()))


def _settings(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    return None if config is None else {k: v for k, v in config.to_dict().items() if k not in _LABELS}
