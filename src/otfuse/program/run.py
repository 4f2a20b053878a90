"""Running a program with any weights of its shapes, and looking at the values inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from otfuse.program.inputs import split_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from otfuse.program.export import Program
    from otfuse.program.inputs import Inputs


class Runner(fx.Interpreter):
    """Interprets the live part of a program.

    ``look(name, value)`` is called with every value named in ``watch`` as soon as it exists; nothing is kept. With
    ``double`` every cast to float32 inside the program becomes one to float64 (graph.md section 6, item 3).
    """

    def __init__(
        self,
        program: Program,
        *,
        watch: frozenset[str] = frozenset(),
        look: Callable[[str, torch.Tensor], None] | None = None,
        double: bool = False,
    ) -> None:
        super().__init__(program.module, garbage_collect_values=True)
        self._program, self._watch, self._look, self._double = program, watch, look, double
        self._live = program.live()
        self._outputs: dict[fx.Node, torch.Tensor] = {}

    def __call__(self, weights: Mapping[str, torch.Tensor], inputs: Inputs | None = None) -> tuple[torch.Tensor, ...]:
        """The program's outputs for these weights (by stored name) and inputs (the example's when None)."""
        leaves = tree_leaves(split_inputs(self._program.inputs if inputs is None else inputs))
        values = dict(zip(self._program.users, leaves, strict=True))
        for name, stored in self._program.parameters.items():
            values[name] = weights[stored]
        kind = torch.float64 if self._double else None
        for name, constant in self._program.constants.items():
            values[name] = constant.to(kind) if kind and constant.is_floating_point() else constant
        if kind:
            values = {k: v.to(kind) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in values.items()}
        placeholders = [node.name for node in self._program.graph.nodes if node.op == "placeholder"]
        self._outputs = {}
        with torch.no_grad():
            self.run(*(values[name] for name in placeholders), enable_io_processing=False)
        return tuple(self._outputs[node] for node in self._program.outputs)

    def run_node(self, n: fx.Node) -> Any:
        """One node; dead ones are skipped."""
        if n.op == "output" or (n.op == "call_function" and n not in self._live):
            return None
        if "_assert" in str(n.target):
            return None
        value = super().run_node(n)
        if n in self._program.outputs:
            self._outputs[n] = value
        if self._look is not None and n.name in self._watch:
            self._look(n.name, value)
        return value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """One operator, float32 raised to float64 where asked."""
        if self._double:
            args, kwargs = fx.node.map_aggregate(args, _raise), fx.node.map_aggregate(kwargs, _raise)
        return super().call_function(target, args, kwargs)


def _raise(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
