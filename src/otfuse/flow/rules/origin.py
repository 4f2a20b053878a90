"""The operator that made the numbers by which something is chosen: which expert a row belongs to."""

from __future__ import annotations

import operator
from typing import Final

import torch
from torch import fx

from otfuse.flow.rules.operators import argument, operator_name
from otfuse.flow.rules.registry import Family, entry_of

_STILL: Final = (  # layouts that leave every number at its place, as the axes tell it
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as", "ravel", "transpose", "swapaxes",
    "swapdims", "t", "permute", "movedim", "moveaxis", "unsqueeze", "squeeze", "expand", "expand_as", "broadcast_to",
)  # fmt: skip
_INTEGERS: Final = (torch.int32, torch.int64)


def origin(numbers: fx.Node) -> fx.Node:
    """The operator that made these numbers and put them where they are, up to layout."""
    node = numbers
    while node.op == "call_function":
        given = node.args[0] if node.args else None
        if not isinstance(given, fx.Node) or not _keeps(given, node):
            break
        node = given
    return node


def _keeps(numbers: fx.Node, node: fx.Node) -> bool:
    """Whether an operator leaves numbers of experts as they are: a layout, or a cast of whole ones that holds them."""
    entry, name = entry_of(node), operator_name(node)
    if entry is None or entry.family is not Family.KEEP or "dropout" in name:
        return name in _STILL
    before, after = (held.meta["val"].dtype for held in (numbers, node))
    return before == after or (before in _INTEGERS and after in (*_INTEGERS, torch.float32, torch.float64))


def sorted_numbers(offsets: fx.Node) -> fx.Node | None:
    """The sorted numbers of which these are the ends of runs, if they are seen to be: ``cumsum(histc(sort(numbers)))``."""
    ends = origin(offsets)
    if operator_name(ends) != "cumsum" or operator_name(counts := origin(argument(ends, 0))) != "histc":
        return None
    bins, least, most = (argument(counts, i, name, 0) for i, name in ((1, "bins"), (2, "min"), (3, "max")))
    numbers = origin(argument(counts, 0))
    made = numbers.args[0] if numbers.target is operator.getitem and numbers.args[1] == 0 else None
    if not isinstance(made, fx.Node) or operator_name(made) != "sort" or (least, most) != (0, bins - 1):
        return None
    upwards = True not in (*made.args, *made.kwargs.values())  # nor stable, which nobody asks for
    return numbers if upwards and len(numbers.meta["val"].shape) == 1 else None
