"""Models as sides of a fusion: traced once where they share a program, checked, matched."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from otfuse.errors import UsageError
from otfuse.flow.derive import derive
from otfuse.flow.match import require_match
from otfuse.flow.verify import SpaceTrial, real, verify_weights
from otfuse.fusion.differences import require_same_functions
from otfuse.measure.probe import Side
from otfuse.program.export import export
from otfuse.program.inputs import examples, resized
from otfuse.program.state import copied

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from otfuse.flow.verify import Verification
    from otfuse.program.export import Program
    from otfuse.program.inputs import Inputs

GATE_TOLERANCE = 1e-4  # float32, real weights: rounding of deep models stays below
_GATE_EXAMPLES = 4
_LABELS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "id2label", "label2id")


def traced(model: nn.Module, inputs: Inputs | None) -> Side:
    """A model's program, flow graph and stored tensors."""
    program = export(model, inputs)
    return Side(program, derive(program, holds=SpaceTrial(model, program)), real(model, program))


def sides(models: Sequence[nn.Module], names: Sequence[str], inputs: Inputs | None) -> list[Side]:
    """All models as sides, anchor first; one that computes the same as the anchor shares its program.

    Raises MatchError if a source's forward pass differs from the anchor's.
    """
    anchor = traced(models[0], inputs)
    found = [anchor]
    for model, name in zip(models[1:], names[1:], strict=True):
        if _same_function(models[0], model):
            side = Side(anchor.program, anchor.graph, real(model, anchor.program))
        else:
            side = traced(model, inputs)
            require_match(anchor.graph, side.graph, (names[0], name))
            require_same_functions(anchor, side, (names[0], name))
        found.append(side)
    return found


def check(models: Sequence[nn.Module], found: Sequence[Side], seed: int) -> Verification:
    """The gate on real weights, once per program; GateError if one fails. Returns the anchor's."""
    first: Verification | None = None
    seen: list[Program] = []
    for model, side in zip(models, found, strict=True):
        if side.program in seen:
            continue
        seen.append(side.program)
        few = min(_GATE_EXAMPLES, examples(side.program.inputs))
        program = replace(side.program, inputs=resized(side.program.inputs, few))
        verification = verify_weights(model, program, side.graph, side.weights, seed=seed)
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


def _settings(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    return None if config is None else {k: v for k, v in config.to_dict().items() if k not in _LABELS}
