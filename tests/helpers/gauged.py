"""One block of a transformer without a model: its tensors, its symmetries, and planted problems."""

from __future__ import annotations

import numpy as np
import torch

from otfuse.align.balance import Balanced
from otfuse.align.compared import Problem, Tensors
from otfuse.align.descent import Descent
from otfuse.align.spaces import Spaces
from otfuse.core.space import Group, Space
from otfuse.core.symmetry import Kind, Slot, Symmetry
from otfuse.flow.groups.element import element

WIDTH, WORDS, HEADS, SIZE, UNITS = 12, 7, 3, 4, 10  # fewer words than units: the stream is not told by them alone


def block(seed):
    """Tensors of one block of a transformer, by name."""
    chance = torch.Generator().manual_seed(seed)
    shapes = {
        "words": (WORDS, WIDTH), "q": (HEADS * SIZE, WIDTH), "k": (HEADS * SIZE, WIDTH), "v": (HEADS * SIZE, WIDTH),
        "o": (WIDTH, HEADS * SIZE), "up": (UNITS, WIDTH), "bias": (UNITS,), "down": (WIDTH, UNITS),
    }  # fmt: skip
    return {name: torch.randn(shape, generator=chance, dtype=torch.float64) for name, shape in shapes.items()}


def spaces_of_block(stream=Kind.ORTHOGONAL_ONES, units=Kind.PERMUTATION):
    """Its symmetries: the stream, heads with what lies inside them, the units of its MLP."""
    within = np.arange(HEADS * SIZE).reshape(HEADS, SIZE)
    whole = {"q": 0, "k": 0, "v": 0, "o": 1}
    heads = [Slot(t, axis, within[None, :, w]) for t, axis in whole.items() for w in range(SIZE)]
    inner, row = np.arange(UNITS)[None], np.arange(WIDTH)[None]
    stream_slots = [Slot(t, 1, row, t != "words") for t in ("words", "q", "k", "v", "up")] + [
        Slot(t, 0, row) for t in ("o", "down")
    ]
    return [
        _symmetry("stream", WIDTH, stream, stream_slots),
        _symmetry("heads", HEADS, Kind.PERMUTATION, heads),
        _symmetry("query-key", SIZE, Kind.INVERTIBLE, [Slot("q", 0, within), Slot("k", 0, within, inverse=True)], HEADS),
        _symmetry("value-output", SIZE, Kind.INVERTIBLE, [Slot("v", 0, within), Slot("o", 1, within, inverse=True)], HEADS),
        _symmetry("units", UNITS, units, [Slot("up", 0, inner), Slot("bias", 0, inner), Slot("down", 1, inner, inverse=True)]),
    ]  # fmt: skip


def _symmetry(kind, n, group, slots, copies=1):
    return Symmetry(Space(kind, kind, kind, n, copies, Group.PERMUTATION, None, ()), group, tuple(slots))


def descent(symmetries, anchor, source, fixed=frozenset()):
    """The descent of one planted or random pair, and both balanced models."""
    shapes = {name: tuple(t.shape) for name, t in anchor.items()}
    spaces = Spaces(symmetries)
    one, other = (Balanced(tensors, list(shapes), shapes, spaces) for tensors in (anchor, source))

    def read(name):
        return (Tensors(a, b) for a, b in zip(one.parts(name), other.parts(name), strict=True))

    problem = Problem(spaces, shapes, read)
    return Descent(problem, (sum(one.squares().values()), sum(other.squares().values())), fixed)


def planted(symmetries, tensors, seed):
    """The tensors with every space moved, and the elements that did it."""
    elements = [element(s, seed) for s in symmetries]
    out = dict(tensors)
    for name in tensors:
        for own in elements:
            out[name] = own(name, out[name])
    return out, dict(zip([s.space.id for s in symmetries], elements, strict=True))
