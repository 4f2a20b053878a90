"""The report: what a run did, what it cost, and what was solved."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from otfuse.core.alignment import SpaceReport
from otfuse.core.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a run: its wall-clock seconds, and the process's peak memory by its end in MiB."""

    name: str
    seconds: float
    peak_mib: float


@dataclass(frozen=True, slots=True)
class Compared:
    """A parent, or what one stage made, on held-back inputs: its ``figure`` (less is better), and of a stage whether it was kept."""

    name: str
    kind: str  # parent | stage
    figure: float
    seconds: float | None
    kept: bool | None


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """A model that went in, anchor first: its name, and the SHA-256 of its files (or of its tensors)."""

    name: str
    hash: str


@dataclass(frozen=True, slots=True)
class Report:
    """Everything to say about one run.

    ``gate`` is None if the graph was not checked (or not needed); ``weights`` are those mixed with, anchor first;
    ``compared`` holds parents and stages by the figure ``compared_by``, where a scheme has stages.
    """

    recipe: Recipe
    stages: tuple[Stage, ...]
    solved: tuple[SpaceReport, ...]
    sources: tuple[SourceInfo, ...]
    gate: dict[str, float] | None
    notes: tuple[str, ...]
    weights: tuple[float, ...] = ()
    compared: tuple[Compared, ...] = ()
    compared_by: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        plain: dict[str, Any] = {"recipe": self.recipe.model_dump(mode="json", exclude_none=True)}
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            plain[field.name] = [_plain(v) for v in value] if isinstance(value, tuple) else value
        return plain


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, float)) else asdict(value)
