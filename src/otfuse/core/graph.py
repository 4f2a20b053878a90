"""The flow graph: spaces, and the layer-level nodes between them in the order of the forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from otfuse.core.space import Space


class NodeKind(StrEnum):
    """What a node does to the units that pass through it."""

    SOURCE = "source"  # a stored table, token or patch embedding: writes units, reads none
    LINEAR = "linear"  # writes new units from those it reads
    NORM = "norm"  # keeps units; may hold a gain and a bias
    SCALE = "scale"  # keeps units; multiplies or shifts them one by one
    ACTIVATION = "activation"  # keeps units
    JUNCTION = "junction"  # adds a branch to a skip
    PRODUCT = "product"  # multiplies two values unit by unit
    CONCAT = "concat"  # lays values end to end
    ATTENTION = "attention"  # query and key end here; writes what value carries
    OPAQUE = "opaque"  # no rule: the units that come out are not followed
    OUTPUT = "output"  # what the model is for


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What a node reads from another.

    ``units[n, m]`` (int64): at position ``i`` of what this node reads arrive the units ``units[i]`` of node ``node``
    (``m > 1`` when one weight serves several units, such as one matrix for all heads); -1 is no unit.
    """

    role: str  # input | skip | branch | query | key | value | factor | part
    node: int
    units: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """The part of a stored tensor that a node uses.

    ``writes`` is (axis, positions[units]): the position along that axis of every unit the node writes.
    ``reads`` is (axis, positions[n]): the position along that axis for every position of what the node reads.
    """

    tensor: str
    writes: tuple[int, NDArray[np.int64]] | None = None
    reads: tuple[int, NDArray[np.int64]] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The token axis of a value: ``extra`` are positions of class-like tokens, ``grid[rows, columns]`` those of patches."""

    dim: int
    extra: NDArray[np.int64]
    grid: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """Where the units of a node can be observed: a value of the program.

    ``dims`` are the dimensions of that value along which its units lie (row-major), ``units`` the entries along the
    flattened dims that belong to the node. ``read`` is None if predictions read the whole value, else a boolean
    array over the other dimensions except the batch (dimension 0), in order.
    """

    value: str
    dims: tuple[int, ...]
    units: NDArray[np.int64]
    tokens: Tokens | None = None
    read: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FlowNode:
    """One layer-level step of the forward pass, writing ``size`` units."""

    index: int
    name: str  # the module that holds it, as in the user's code
    kind: NodeKind
    size: int
    readings: tuple[Reading, ...] = ()
    pieces: tuple[Piece, ...] = ()
    observation: Observation | None = None
    read_spaces: tuple[str, ...] = ()
    written_spaces: tuple[str, ...] = ()
    heads: int = 1  # groups of units that move together (attention heads), units of one head being neighbours
    where: str = ""

    def reading(self, role: str) -> Reading | None:
        """The first thing read in that role, or None."""
        return next((r for r in self.readings if r.role == role), None)


@dataclass(frozen=True, slots=True, eq=False)
class FlowGraph:
    """Spaces and nodes of one model; ``shapes`` are those of every stored tensor, ``ties`` name -> its first name.

    ``unread`` names stored floating tensors that no prediction depends on.
    """

    spaces: tuple[Space, ...]
    nodes: tuple[FlowNode, ...]
    shapes: dict[str, tuple[int, ...]]
    ties: dict[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def free(self) -> tuple[Space, ...]:
        """Spaces whose units may be permuted."""
        return tuple(s for s in self.spaces if s.free)

    @property
    def parameters(self) -> int:
        """Number of stored values, tied tensors counted once."""
        from math import prod

        return sum(prod(shape) for name, shape in self.shapes.items() if self.ties.get(name, name) == name)

    def space(self, space_id: str) -> Space:
        """The space with that id; KeyError if there is none."""
        for space in self.spaces:
            if space.id == space_id:
                return space
        raise KeyError(space_id)


def unreached(graph: FlowGraph) -> list[str]:
    """Modules of whose tensors no prediction depends on any, as ``model.vision_tower (28 tensors)``; single tensors by name."""
    every, lost = set(graph.shapes), set(graph.unread)
    whole = {
        prefix
        for prefix in {
            ".".join(parts[:n]) for parts in (name.split(".") for name in lost) for n in range(1, len(parts))
        }
        if all(name in lost for name in every if name.startswith(f"{prefix}."))
    }
    found: dict[str, int] = {}
    for name in graph.unread:
        parts = name.split(".")
        prefixes = (".".join(parts[:n]) for n in range(1, len(parts)))
        place = next((prefix for prefix in prefixes if prefix in whole), name)
        found[place] = found.get(place, 0) + 1
    return [
        place if place in every else f"{place} ({count} tensor{'s' * (count > 1)})" for place, count in found.items()
    ]
