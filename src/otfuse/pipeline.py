"""The whole story on one screen: checkpoint -> program -> flow graph -> maps -> fused weights -> checkpoint -> report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otfuse.flow.derive import derive
from otfuse.flow.verify import SpaceTrial, Verification, verify_graph
from otfuse.program.export import Program, export

if TYPE_CHECKING:
    from torch import nn

    from otfuse.core.graph import FlowGraph
    from otfuse.program.inputs import Inputs


def trace(model: nn.Module | str, example_inputs: Inputs | None = None) -> FlowGraph:
    """The flow graph of a module or checkpoint; inputs are made from a Hugging Face config when None."""
    return _traced(_module(model), example_inputs)[1]


def verify(model: nn.Module | str, example_inputs: Inputs | None = None, seed: int = 0) -> Verification:
    """The gate (design.md 3.1): ``.error`` and ``.control`` are relative output changes, ``.graph`` the flow graph."""
    module = _module(model)
    program, graph = _traced(module, example_inputs)
    return verify_graph(module, program, graph, seed=seed)


def _traced(module: nn.Module, example_inputs: Inputs | None) -> tuple[Program, FlowGraph]:
    program = export(module, example_inputs)
    return program, derive(program, holds=SpaceTrial(module, program))


def _module(model: nn.Module | str) -> nn.Module:
    if isinstance(model, str):
        from otfuse.io.checkpoint import load_model, open_checkpoint

        return load_model(open_checkpoint(model))
    return model


def fuse() -> None:
    raise NotImplementedError
