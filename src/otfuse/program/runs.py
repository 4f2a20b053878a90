"""Reading a run of places by numbers that the program holds is a slice: `x[..., [-2], :]` is `x[..., -2:-1, :]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from otfuse.program.whereabouts import short_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import fx

_AS_IT_IS = ("lift_fresh_copy", "clone", "detach", "detach_", "alias")


def plain_runs(graph: fx.Graph, constants: Mapping[str, torch.Tensor]) -> None:
    """Put slices where rows are read by number along one dimension and the numbers follow each other."""
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in (
            torch.ops.aten.index.Tensor,
            torch.ops.aten.index_select.default,
        ):
            continue
        x, dim, numbers = _read(node)
        held = _constant(numbers, constants)
        if held is None or held.ndim != 1 or held.dtype not in (torch.int64, torch.int32) or not held.numel():
            continue
        length = x.meta["val"].shape[dim]
        places = [int(n) % length for n in held]
        if places != list(range(places[0], places[0] + len(places))):
            continue
        with graph.inserting_before(node):
            cut = graph.call_function(torch.ops.aten.slice.Tensor, (x, dim, places[0], places[-1] + 1))
        cut.meta = dict(node.meta)
        node.replace_all_uses_with(cut)
        graph.erase_node(node)


def _read(node: fx.Node) -> tuple[fx.Node, int, Any]:
    """What is read, along which dimension and by which numbers (None: by several)."""
    x: Any = node.args[0]
    if node.target is torch.ops.aten.index_select.default:
        dim: Any = node.args[1]
        return x, dim % x.meta["val"].ndim, node.args[2]
    given: Any = node.args[1]
    dims = [i for i, numbers in enumerate(given) if numbers is not None]
    return x, dims[0], given[dims[0]] if len(dims) == 1 else None


def _constant(numbers: Any, constants: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    while numbers is not None and numbers.op == "call_function" and short_name(numbers) in _AS_IT_IS:
        numbers = numbers.args[0]
    held = constants.get(numbers.name) if numbers is not None and numbers.op == "placeholder" else None
    return None if held is None or held.is_meta else held
