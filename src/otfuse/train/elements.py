"""Elements of the groups of symmetries as things to be learned: all begin at the identity."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from otfuse.core.symmetry import Kind
from otfuse.flow.groups.element import Element

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from otfuse.core.symmetry import Symmetry

_UNITS = ("units", "channels")  # kinds of spaces whose permutations may be made soft: the inner units of one layer


class Elements(nn.Module):
    """One element of the group of every space that has a continuous part, around the identity.

    Orthogonal maps are Cayley transforms of skew matrices, invertible ones ``I + X``, scalings exponentials, a turn an angle
    and a logarithm. Permutations and signs stay as they are, unless ``soft``: then inner units are mixed by any matrix near
    the identity, what reads them by its transpose. That is no symmetry: the source alone loses something by it.
    ``dtype`` is the precision in which they are kept, and so that in which exact elements leave the function as it is.
    """

    def __init__(
        self, symmetries: Sequence[Symmetry], *, soft: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self._moved: list[tuple[Symmetry, str]] = []
        for symmetry in symmetries:
            form = _form(symmetry, soft=soft)
            if form:
                self._moved.append((symmetry, form))
        self.values = nn.ParameterList(
            nn.Parameter(torch.zeros(_shape(s, form), dtype=dtype)) for s, form in self._moved
        )

    @property
    def learns(self) -> bool:
        """Whether anything can be learned: some models have permutations only."""
        return bool(self._moved)

    def elements(self) -> list[Element]:
        """The present elements, differentiable."""
        found = zip(self._moved, self.values, strict=True)
        return [_element(symmetry, form, value) for (symmetry, form), value in found]


def _form(symmetry: Symmetry, *, soft: bool) -> str:
    kind = symmetry.kind
    if soft and symmetry.space.kind in _UNITS and not kind.mixes:
        return "soft"
    if kind in (Kind.ORTHOGONAL, Kind.ORTHOGONAL_ONES, Kind.INVERTIBLE):
        return kind.value if symmetry.n > 1 else ""
    if kind is Kind.TURN:
        return "turn"
    return "factors" if kind in (Kind.POSITIVE, Kind.SCALING) else ""


def _shape(symmetry: Symmetry, form: str) -> tuple[int, ...]:
    if form == "turn":
        return symmetry.copies, 2
    return (symmetry.copies, symmetry.n) if form == "factors" else (symmetry.copies, symmetry.n, symmetry.n)


def _element(symmetry: Symmetry, form: str, value: Tensor) -> Element:
    if form == "factors":
        return Element(symmetry, factors=value.exp())
    if form == "turn":
        angle, size = value[:, 0], value[:, 1].exp()
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).reshape(-1, 2, 2)
        return Element(symmetry, maps=turn * size[:, None, None], back=turn / size[:, None, None])
    unit = torch.eye(symmetry.n, dtype=value.dtype, device=value.device)
    if form == "soft":
        mixing = unit + value
        return Element(replace(symmetry, kind=Kind.INVERTIBLE), maps=mixing, back=mixing)
    if form == Kind.INVERTIBLE.value:
        return Element(symmetry, maps=unit + value)
    skew = value - value.mT
    if form == Kind.ORTHOGONAL_ONES.value:
        across = unit - 1 / symmetry.n
        skew = across @ skew @ across
    turned = torch.linalg.solve(unit + skew, unit - skew)
    return Element(symmetry, maps=turned, back=turned)
