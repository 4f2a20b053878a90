"""Which places of a value any prediction reads, found by walking back from the outputs (docs/method.md, 3.5)."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from otfuse.flow.follow.numbers import compact, squeezed
from otfuse.flow.follow.run_on_numbers import rerun
from otfuse.flow.rules.operators import argument, operator_name
from otfuse.flow.rules.registry import Family, entry_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from otfuse.program.export import Program


class Reach:
    """For every node of the program a boolean mask of the elements that an output depends on, None for all.

    Masks are kept only where something is left unread; every rule here errs towards "read".
    """

    def __init__(self, program: Program) -> None:
        self._masks: dict[fx.Node, torch.Tensor | None] = {}
        live, outputs = program.live(), set(program.outputs)
        self._stored: dict[str, list[torch.Tensor | None]] = {}
        for node in reversed(program.graph.nodes):
            if node in live:
                self._masks[node] = None if node in outputs else self._union(node, live)
                if node.name in program.parameters:
                    self._stored.setdefault(program.parameters[node.name], []).append(self._masks[node])

    def unread(self, tensor: str, axis: int) -> NDArray[np.bool_] | None:
        """Positions along an axis of a stored tensor that no output depends on, None if there are none."""
        masks = self._stored.get(tensor, [None])
        if any(mask is None for mask in masks):
            return None
        read = torch.stack([mask for mask in masks if mask is not None]).any(0).movedim(axis, 0).flatten(1).any(1)
        return None if bool(read.all()) else (~read).numpy()

    def read(self, node: fx.Node, dims: Sequence[int], units: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """The mask over the places of a value at which these units are read (entries along the flattened ``dims``).

        Places are all dimensions but the batch (the first) and those of the units.
        """
        mask = self._masks.get(node)
        if mask is None:
            return None
        mask = squeezed(mask, keep=range(1, mask.ndim)).any(0, keepdim=True)
        mask = mask.movedim(tuple(dims), tuple(range(-len(dims), 0))).flatten(-len(dims))
        mask = mask[0, ..., torch.from_numpy(units)].any(-1)
        return None if bool(mask.all()) else mask.numpy().copy()

    def _union(self, node: fx.Node, live: set[fx.Node]) -> torch.Tensor | None:
        held = node.meta.get("val")
        if not isinstance(held, torch.Tensor):
            return None
        mask: torch.Tensor | None = None
        for user in node.users:
            if user not in live:
                continue
            back = self._back(user, node, held)
            if back is None:
                return None
            mask = back if mask is None else mask | back
        return None if mask is None or bool(squeezed(mask).all()) else mask

    def _back(self, user: fx.Node, node: fx.Node, held: torch.Tensor) -> torch.Tensor | None:
        """What ``user`` reads of ``node``, given what is read of ``user``; None for everything."""
        entry = entry_of(user) if user.target is not operator.getitem else None
        family, after = (entry.family if entry is not None else None), self._masks.get(user)
        shape = tuple(held.shape)
        if family is Family.LAYOUT and operator_name(user) not in ("cat", "stack", "concat"):
            return self._layout(user, node, shape, after)
        if family is Family.LAYOUT and operator_name(user) in ("cat", "concat") and after is not None:
            return self._cat(user, node, after)
        if after is None:
            return None
        if family is Family.KEEP or (family is Family.POINTWISE and operator_name(user) not in ("glu", "prelu")):
            return _summed_to(after, shape) if "softmax" not in operator_name(user) else None
        if family is Family.NORM and operator_name(user) in ("layer_norm", "rms_norm") and user.args[0] is node:
            return _whole_along(after, len(user.args[1])).expand(shape)  # type: ignore[arg-type]
        if operator_name(user) == "linear" and user.args[0] is node:
            return _whole_along(after).expand(shape)
        if family is Family.CONTRACTION and operator_name(user) in ("addmm", "mm", "matmul") and len(shape) > 1:
            return _rows(user, node, after, shape)
        if family is Family.ATTENTION and user.args[0] is node and node not in user.args[1:]:
            return _whole_along(after).expand(shape)
        return None

    def _layout(self, user: fx.Node, node: fx.Node, shape: tuple[int, ...], after: Any) -> torch.Tensor | None:
        """The derivative of an operator that only moves elements tells where each went."""
        if user.args[0] is not node:
            return None
        results = user.meta.get("val")
        if after is None and isinstance(results, torch.Tensor) and results.numel() == int(np.prod(shape)):
            return None
        with torch.enable_grad():
            elements = torch.zeros(shape, requires_grad=True)
            moved = rerun(user, {node: elements})
        pieces = [(moved, after)]
        if not isinstance(moved, torch.Tensor):  # split and its like: every piece that is used
            pieces = [(moved[item.args[1]], self._masks.get(item)) for item in user.users]
        read = [torch.ones_like(piece) if mask is None else mask.to(piece.dtype) for piece, mask in pieces]
        (reached,) = torch.autograd.grad([piece for piece, _ in pieces], elements, read)
        return compact(reached != 0)

    def _cat(self, user: fx.Node, node: fx.Node, after: torch.Tensor) -> torch.Tensor | None:
        parts = list(user.args[0])  # type: ignore[arg-type]
        dim = int(argument(user, 1, "dim", 0))
        sizes = [p.meta["val"].shape[dim] for p in parts]
        pieces = [m for p, m in zip(parts, after.split(sizes, dim), strict=True) if p is node]
        return torch.stack(pieces).any(0)


def _whole_along(mask: torch.Tensor, dims: int = 1) -> torch.Tensor:
    """Whether anything is read along the last dimensions, which are kept."""
    return squeezed(mask).any(dim=tuple(range(-dims, 0)), keepdim=True)


def _summed_to(mask: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A mask of a broadcast result, for an operand of that shape."""
    while mask.ndim > len(shape):
        mask = mask.any(0)
    for d, n in enumerate(shape):
        if n == 1 and mask.shape[d] != 1:
            mask = mask.any(d, keepdim=True)
    return mask.expand(shape)


def _rows(user: fx.Node, node: fx.Node, after: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor | None:
    """Rows of a product's left operand are read where rows of the result are; of the right operand all is."""
    left = user.args[1] if operator_name(user) == "addmm" else user.args[0]
    if left is not node or after.ndim != len(shape):
        return None
    return _whole_along(after).expand(shape)
