"""A layout operator run on numbers instead of values: what it moves where needs no second description."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from otfuse.flow.follow.numbers import NOTHING
from otfuse.flow.rules.operators import argument, operator_name

if TYPE_CHECKING:
    from collections.abc import Mapping


def rerun(node: fx.Node, known: Mapping[Any, torch.Tensor]) -> Any:
    """The result of ``node`` for these numbers; of other tensors only the shape matters."""
    name = operator_name(node)
    if name in ("view", "_unsafe_view"):  # numbers may lie in memory in another order than values
        return known[node.args[0]].reshape(node.meta["val"].shape)
    if name in ("pad", "constant_pad_nd"):  # no unit stands in the margins
        return torch.nn.functional.pad(known[node.args[0]], argument(node, 1), value=NOTHING)

    def number(other: fx.Node) -> Any:
        held = other.meta.get("val")
        return known.get(other, torch.tensor(NOTHING).expand(held.shape) if isinstance(held, torch.Tensor) else held)

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), number)
    return node.target(*args, **kwargs)  # type: ignore[operator]
