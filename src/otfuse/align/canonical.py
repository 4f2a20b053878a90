"""All models of a fusion in one canonical form, with the groups that hold in all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from otfuse.align.frame import Frame
from otfuse.align.spaces import Spaces
from otfuse.core.symmetry import Kind
from otfuse.flow.groups.canonical import CanonicalWeights
from otfuse.flow.groups.find import Symmetries, symmetries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otfuse.core.symmetry import Symmetry
    from otfuse.measure.probe import Side
    from otfuse.program.weights import Weights


@dataclass(frozen=True, slots=True, eq=False)
class Canonical:
    """Symmetries that hold in all models, and their tensors, folded as they are asked for, anchor first.

    Where widths differ, symmetries and tensors are those of a ``frame`` that holds all models; ``own`` are the tensors in their own
    sizes.
    """

    found: tuple[Symmetry, ...]
    weights: tuple[Weights, ...]
    notes: tuple[str, ...]
    own: tuple[CanonicalWeights, ...]
    shapes: Mapping[str, tuple[int, ...]]
    frame: Frame | None = None

    @property
    def views(self) -> tuple[Weights, ...]:
        """What carries are made for: the anchor in its own size, sources in the frame."""
        return (self.own[0], *self.weights[1:])


def canonical(sides: Sequence[Side], groups: str) -> Canonical:
    """The form and the groups that hold in all models. UnequalError if their widths differ so that no frame holds them.

    Where a space has another kind in one model, or norms fold otherwise, only permutations are common.
    """
    asked = _asked(sides, groups)
    notes = [note for own in asked for note in own.notes]
    if len({tuple(sorted(fold.gain for fold in own.folds)) for own in asked}) > 1:
        notes.append("norms do not fold alike in all models: groups are permutations only")
        asked = [symmetries(side, groups="permutation") for side in sides]
    kinds = [{s.space.id: s.kind for s in own.found} for own in asked]
    found = []
    for s in asked[0].found:
        theirs = {own.get(s.space.id) for own in kinds}
        if None in theirs or (len(theirs) > 1 and Kind.TURN in theirs):
            continue
        if len(theirs) > 1:
            notes.append(f"{s.space.name}: its group differs between models; only permutations are used")
        found.append(s if len(theirs) == 1 else replace(s, kind=Kind.PERMUTATION))
    if groups == "permutation":
        found = [s for s in found if s.kind is not Kind.TURN]
    weights = tuple(
        CanonicalWeights(side.weights, own.folds, side.graph.ties) for side, own in zip(sides, asked, strict=True)
    )
    shapes, told = sides[0].graph.shapes, tuple(dict.fromkeys(notes))
    if equal(sides):
        return Canonical(tuple(found), weights, told, weights, shapes)
    kind = {s.space.id: s.kind for s in found}
    each = [[replace(s, kind=kind[s.space.id]) for s in own.found if s.space.id in kind] for own in asked]
    frame = Frame(sides, each, [side.graph.shapes for side in sides])
    spaces = Spaces(frame.symmetries)
    framed = tuple(frame.weights(own, k, spaces) for k, own in enumerate(weights))
    return Canonical(frame.symmetries, framed, told, weights, frame.shapes, frame)


def equal(sides: Sequence[Side]) -> bool:
    """Whether all tensors that predictions read have the same shapes in all models."""
    ours = sides[0].graph
    return all(
        side.graph.shapes.get(name, shape) == shape
        for side in sides[1:]
        for name, shape in ours.shapes.items()
        if name not in ours.unread
    )


def _asked(sides: Sequence[Side], groups: str) -> list[Symmetries]:
    """What holds in each model; asked once of those that share a program, as far as it holds for all weights."""
    found = [symmetries(sides[0], groups=groups)]
    for side in sides[1:]:
        same = side.program is sides[0].program and not any(fold.divides for fold in found[0].folds)
        found.append(found[0] if same else symmetries(side, groups=groups))
    return found


def cosines(spaces: Spaces, one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Cosine of both models' tensors that each space touches, as they lie; gains, which are alike everywhere, left out."""
    sums: dict[str, list[float]] = {}
    for name, own in spaces.at.items():
        keys = {key for key, place in own if not place.order_only}
        if not keys:
            continue
        a, b = (w[name].detach().to("cpu").double().reshape(-1) for w in (one, other))
        told = [float(a @ b), float(a @ a), float(b @ b)]
        for key in keys:
            sums[key] = [x + y for x, y in zip(sums.get(key, (0.0, 0.0, 0.0)), told, strict=True)]
    return {key: ab / (aa * bb) ** 0.5 if aa * bb > 0 else 0.0 for key, (ab, aa, bb) in sums.items()}
