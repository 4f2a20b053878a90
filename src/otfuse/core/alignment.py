"""Alignment: what a scheme finds, as instructions that carry a source's tensors into the anchor's basis."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class AxisMap:
    """Carries a block of one axis: ``new[anchor[i]] = sum_j matrix[i, j] old[source[j]]``.

    ``matrix[anchor unit, source unit]`` is dense or compressed (``align.matrix``); ``anchor[na]`` and ``source[ns]`` are
    positions along the axis.
    """

    axis: int
    matrix: Any
    anchor: NDArray[np.int64]
    source: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Carry:
    """One block of one tensor and the maps of its axes; an axis without a map is taken as it is."""

    tensor: str
    axes: tuple[AxisMap, ...]


@dataclass(frozen=True, slots=True)
class SpaceReport:
    """What was solved for one space or node: method, objective before and after, convergence.

    ``spaces`` are the ids of the spaces that the map found belongs to, ``source`` the model beside the anchor.
    """

    name: str
    method: str
    size: tuple[int, int]  # anchor units, source units
    before: float  # objective of the identity (or the uniform coupling where sizes differ)
    after: float
    converged: bool
    marginal_error: float
    steps: int
    spaces: tuple[str, ...] = ()
    source: str = ""
    cosine: float | None = None  # of the weights that the space touches, before aligning


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """What was found for one source. ``maps[space id]`` is ``[anchor, source]``; empty where nobody asked to keep them.

    ``kept`` are tensors that stay the anchor's.
    """

    maps: dict[str, torch.Tensor] = field(default_factory=dict)
    solved: tuple[SpaceReport, ...] = ()
    notes: tuple[str, ...] = ()
    kept: frozenset[str] = frozenset()
