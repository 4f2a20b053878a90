"""Repeated blocks folded: rows that agree up to the numbers in their names become one row with a count."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

Row = TypeVar("Row")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Fold:
    """``count`` rows under one ``name``, such as ``layers.{0..5}.mlp``; ``indices`` are their places in the input."""

    name: str
    indices: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many rows it stands for."""
        return len(self.indices)


def fold(rows: Iterable[Row], name: Callable[[Row], str], alike: Callable[[Row], Hashable]) -> list[Fold]:
    """Rows whose names agree up to their numbers and whose ``alike`` is equal, in the order of the first of each."""
    groups: dict[Hashable, list[tuple[int, str]]] = {}
    for index, row in enumerate(rows):
        text = name(row)
        groups.setdefault((_NUMBER.sub("#", text), alike(row)), []).append((index, text))
    return [Fold(_common([text for _, text in group]), tuple(i for i, _ in group)) for group in groups.values()]


def masked(text: str) -> str:
    """``text`` with every number as ``#``."""
    return _NUMBER.sub("#", text)


def _common(names: list[str]) -> str:
    """One name for all: numbers that vary are written ``{0..5}``, or ``{0,2,4}`` where they skip."""
    columns = list(zip(*(_NUMBER.findall(name) for name in names), strict=True))
    numbers = iter(_range([int(n) for n in column]) if len(set(column)) > 1 else column[0] for column in columns)
    return _NUMBER.sub(lambda _: next(numbers), names[0])


def _range(numbers: list[int]) -> str:
    distinct = sorted(set(numbers))
    if distinct == list(range(distinct[0], distinct[-1] + 1)):
        return f"{{{distinct[0]}..{distinct[-1]}}}"
    shown = ",".join(map(str, distinct)) if len(distinct) <= 4 else f"{distinct[0]},{distinct[1]},..,{distinct[-1]}"
    return f"{{{shown}}}"
