"""What of a program is stored, in which views, and who reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves

from otfuse.program.cut import moving

if TYPE_CHECKING:
    from torch import fx

    from otfuse.program.export import Program


@dataclass(frozen=True, slots=True)
class Place:
    """A stored tensor (by first name), or the part of it that a view shows."""

    tensor: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def entries(self, size: int) -> torch.Tensor:
        """The numbers of its values among the ``size`` of the tensor."""
        return torch.arange(size).as_strided(self.shape, self.stride, self.offset).reshape(-1)


class Uses:
    """What of a program is stored, and who reads it."""

    def __init__(self, program: Program) -> None:
        moves = moving(program)
        self.sizes = {name: torch.Size(shape).numel() for name, shape in program.shapes.items()}
        self._stored: dict[fx.Node, frozenset[str]] = {}
        self._places: dict[fx.Node, Place | None] = {}
        self.readers: dict[str, set[fx.Node]] = {}
        self.steps = [n for n in program.graph.nodes if n in moves and n.op == "call_function"]
        live, roots = program.live(), dict[int, str]()
        for node in program.graph.nodes:
            if node not in live or node in moves:
                continue
            if node.op == "placeholder" and node.name in program.parameters:
                self._stored[node] = frozenset({program.parameters[node.name]})
                roots[_memory(node)] = program.parameters[node.name]
            else:
                self._stored[node] = frozenset[str]().union(*(self._stored[a] for a in node.all_input_nodes))
            self._places[node] = _place(node, roots)
        self.inputs = _inputs_behind(program)
        for node in self.steps:
            for read in node.all_input_nodes:
                for name in self._stored.get(read, ()):
                    self.readers.setdefault(name, set()).add(node)

    def place(self, node: Any) -> Place | None:
        """The stored tensor that a value is a view of; None if it is none."""
        return self._places.get(node)

    def depends(self, node: Any) -> frozenset[str]:
        """The stored tensors that a value that does not move depends on."""
        return self._stored.get(node, frozenset())


def _inputs_behind(program: Program) -> dict[fx.Node, frozenset[str]]:
    """The inputs that every value depends on, as forward names them (else as the program does)."""
    named = list(program.inputs) if isinstance(program.inputs, Mapping) else list(program.users)
    names = dict(zip(program.users, named, strict=False))
    found: dict[fx.Node, frozenset[str]] = {}
    for node in program.graph.nodes:
        own = frozenset({names[node.name]} if node.op == "placeholder" and node.name in names else ())
        found[node] = own.union(*(found[a] for a in node.all_input_nodes))
    return found


def _place(node: fx.Node, roots: dict[int, str]) -> Place | None:
    held = node.meta.get("val")
    if not isinstance(held, torch.Tensor) or _memory(node) not in roots or not held.is_floating_point():
        return None
    return Place(roots[_memory(node)], int(held.storage_offset()), tuple(held.shape), tuple(held.stride()))


def _memory(node: fx.Node) -> int:
    held = next((leaf for leaf in tree_leaves(node.meta.get("val")) if isinstance(leaf, torch.Tensor)), None)
    return -1 if held is None else memory_of(held)


def memory_of(held: torch.Tensor) -> int:
    """What holds a traced value."""
    return held.untyped_storage()._cdata  # type: ignore[no-any-return]  # noqa: SLF001  # storages have no public identity
