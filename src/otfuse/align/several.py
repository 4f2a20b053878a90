"""Several models together: a source against the weighted mean of others as they are carried by now, and how far all lie apart."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Protocol

import torch

from otfuse.align.compared import Moments, Problem, Tensors
from otfuse.align.elements import carried
from otfuse.align.observed import FramedNodes, cross_moments, places_at
from otfuse.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from otfuse.align.balance import Balanced
    from otfuse.align.compared import State
    from otfuse.align.elements import Element, Place
    from otfuse.align.frame import Frame
    from otfuse.align.spaces import Spaces
    from otfuse.core.dataset import Dataset
    from otfuse.measure.probe import Side

    States = Mapping[int, State]  # of sources, by number: the anchor is 0 and stays where it is

_NOISE = {torch.float64: 1e-12, torch.float32: 1e-8}  # of the largest possible inner product, by what is worked in


class Among(Protocol):
    """What all models are compared by; every exact map keeps the lengths of it."""

    def against(self, k: int, others: Sequence[int], states: States) -> Problem:
        """Source ``k`` against the mean of others."""

    def squares(self, k: int) -> tuple[float, float]:
        """Squared lengths of the anchor and of source ``k``."""

    def spread(self, states: States) -> float:
        """``sum_ij w_i w_j |C_i - C_j|^2 / 2`` over all pairs, for weights ``w`` that sum to one."""


class AmongTensors:
    """By stored tensors, balanced; ``squares`` are their squared lengths."""

    def __init__(
        self, models: Sequence[Balanced], spaces: Spaces, shares: Sequence[float], squares: Sequence[float]
    ) -> None:
        self._models, self._spaces, self._shares, self._squares = models, spaces, shares, squares

    def against(self, k: int, others: Sequence[int], states: States) -> Problem:
        """See :class:`Among`: tensors in parts; the others' means are kept where models are small enough to be kept."""
        small, kept = self._models[0].dtype == torch.float64, dict[str, list[Tensors]]()

        def read(name: str) -> Iterable[Tensors]:
            if name in kept:
                return kept[name]
            every = zip(*(self._models[i].parts(name) for i in (*others, k)), strict=True)
            found = (Tensors(self._mean(name, others, parts[:-1], states), parts[-1]) for parts in every)
            return kept.setdefault(name, list(found)) if small else found

        return Problem(self._spaces, self._models[0].names, read, _NOISE[self._models[0].dtype])

    def squares(self, k: int) -> tuple[float, float]:
        """See :class:`Among`."""
        return self._squares[0], self._squares[k]

    def spread(self, states: States) -> float:
        """See :class:`Among`: ``sum_i w_i |C_i - mean|^2``, the same as the sum over pairs."""
        every, total = [i for i, share in enumerate(self._shares) if share > 0], 0.0
        for name in self._models[0].names:
            for parts in zip(*(self._models[i].parts(name) for i in every), strict=True):
                terms = [self._carried(name, i, part, states) for i, part in zip(every, parts, strict=True)]
                mean = self._mean(name, every, parts, states)
                total += sum(
                    self._shares[i] * float((term - mean).square().sum()) for i, term in zip(every, terms, strict=True)
                )
        return total

    def _mean(self, name: str, others: Sequence[int], parts: Sequence[torch.Tensor], states: States) -> torch.Tensor:
        if list(others) == [0]:
            return parts[0]
        mean = torch.zeros_like(parts[0])
        for i, part in zip(others, parts, strict=True):
            mean = mean + _share(self._shares, others, i) * self._carried(name, i, part, states)
        return mean

    def _carried(self, name: str, i: int, part: torch.Tensor, states: States) -> torch.Tensor:
        return part if i == 0 else carried(part, [(place, states[i][key]) for key, place in self._spaces.at[name]])


class AmongMoments:
    """By what the nodes compute of the same inputs, each node as large as any other.

    ``sides`` have canonical, balanced weights, in their own sizes; where these differ, moments are laid in the ``frame``, whose
    ``spaces`` these are. Pairs are measured when they are first asked for, and kept. Raises DataError if no space can be observed.
    """

    def __init__(
        self,
        sides: Sequence[Side],
        spaces: Spaces,
        shares: Sequence[float],
        data: Dataset,
        tell: Callable[[int, int], None] | None = None,
        frame: Frame | None = None,
    ) -> None:
        self._nodes = None if frame is None else FramedNodes(frame, sides)
        where = places_at(sides[0].graph, spaces) if self._nodes is None else self._nodes.places
        if not any(where.values()):
            raise DataError(
                "aligned.features activations: no value of this model shows its units; use features: weights"
            )
        self._sides, self._shares, self._data, self._tell = sides, shares, data, tell
        self._spaces = spaces.elsewhere(where)
        self._names = sorted(self._spaces.at, key=lambda name: int(name[1:]))
        self._pairs: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
        self.seen = frozenset(key for key, own in where.items() if own)

    def against(self, k: int, others: Sequence[int], states: States) -> Problem:
        """See :class:`Among`: the mean of the others' cross moments with source ``k``, in memory."""
        tables = {name: [Moments(self._mean(name, k, others, states))] for name in self._names}
        return Problem(self._spaces, tables, tables.__getitem__)

    def squares(self, k: int) -> tuple[float, float]:  # noqa: ARG002  # all are alike
        """See :class:`Among`: every node counts one."""
        return float(len(self._names)), float(len(self._names))

    def spread(self, states: States) -> float:
        """See :class:`Among`."""
        every, total = [i for i, share in enumerate(self._shares) if share > 0], 0.0
        for i, k in combinations(every, 2):
            weight = self._shares[i] * self._shares[k]
            for name in self._names:
                moments = Moments(self._carried(name, i, k, states)).carried(self._moves(name, k, states))
                total += weight * moments.distance()
        return total

    def _mean(self, name: str, k: int, others: Sequence[int], states: States) -> torch.Tensor:
        terms = [_share(self._shares, others, i) * self._carried(name, i, k, states) for i in others]
        return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]

    def _carried(self, name: str, i: int, k: int, states: States) -> torch.Tensor:
        """Cross moments of ``i``, carried, with ``k`` as it is."""
        moments = self._cross(name, i, k)
        return moments if i == 0 else carried(moments.T, self._moves(name, i, states)).T

    def _moves(self, name: str, i: int, states: States) -> list[tuple[Place, Element]]:
        return [] if i == 0 else [(place, states[i][key]) for key, place in self._spaces.at[name]]

    def _cross(self, name: str, i: int, k: int) -> torch.Tensor:
        if (k, i) in self._pairs:
            return self._pairs[k, i][name].T
        if (i, k) not in self._pairs:
            found = cross_moments(self._sides[i], self._sides[k], self._names, self._data, self._tell)
            if self._nodes is not None:
                found = {n: self._nodes.moments(n, own, (i, k), self._spaces) for n, own in found.items()}
            self._pairs[i, k] = found
        return self._pairs[i, k][name]


def _share(shares: Sequence[float], others: Sequence[int], i: int) -> float:
    total = sum(shares[j] for j in others)
    return shares[i] / total if total > 0 else 1 / len(others)
