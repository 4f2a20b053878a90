"""Rows of experts: every model sends tokens to experts of its own choice, so rows are matched by token and expert."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from otfuse.calibrate.layers import Layer


def routed_rows(
    group: Sequence[Layer],
    tables: Sequence[Mapping[str, Tensor]],
    mix: Sequence[float],
    keep: Callable[[Sequence[int]], Tensor | None],
) -> Iterator[tuple[Tensor, list[Tensor], slice]]:
    """Inputs and targets of one expert after another.

    A row's target is the mean over those parents that send the same token to the same expert; a row to which none does is
    left out.
    """
    form, experts = group[0].form, group[0].form.weight.meta["val"].shape[0]
    rows = [_Routed(group[0], table, experts) for table in tables]
    counted = keep((group[0].token_count,))
    token = rows[0].token
    good = torch.ones_like(token, dtype=torch.bool) if counted is None else counted.to(token.device)[token]
    found = [other.find(rows[0].key) for other in rows[1:]]
    shares = torch.stack([w * there for w, (there, _) in zip(mix, found, strict=True)])
    good = good & (shares.sum(0) > 0)
    x = form.inputs(tables[0][form.x.name]).squeeze(-2)[good]
    shares = (shares / shares.sum(0).clamp_min(1e-12))[:, good].to(x)
    targets = []
    for layer in group:
        total = torch.zeros((), device=x.device)
        for m, (share, (there, at)) in enumerate(zip(shares, found, strict=True), 1):
            given = tables[m][layer.node.name][at[good]]
            total = total + torch.where(there[good][:, None], share[:, None] * given, 0.0)
        targets.append(total)
    expert = rows[0].expert[good]
    for e in range(experts):
        own = (expert == e).nonzero()[:, 0]
        if len(own):
            yield x[own][None], [t[own][None] for t in targets], slice(e, e + 1)


class _Routed:
    """The rows of one model: which token and which expert each of them is."""

    def __init__(self, layer: Layer, table: Mapping[str, Tensor], experts: int) -> None:
        ends, numbers = (table[node.name] for node in layer.routing)
        count = torch.diff(ends.long(), prepend=ends.new_zeros(1).long())
        self.expert = torch.arange(experts, device=ends.device).repeat_interleave(count)
        self.token = numbers.long()
        self.key = self.token * experts + self.expert
        self._sorted, self._order = self.key.sort()

    def find(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each key is among the rows, and in which row (any, where it is not)."""
        at = torch.searchsorted(self._sorted, keys).clamp_max(len(self._sorted) - 1)
        return self._sorted[at] == keys, self._order[at]
