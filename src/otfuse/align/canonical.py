"""All models of a fusion in one canonical form, with the groups that hold in all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from otfuse.core.symmetry import Kind
from otfuse.errors import UnequalError
from otfuse.flow.groups.canonical import CanonicalWeights
from otfuse.flow.groups.find import Symmetries, symmetries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otfuse.align.spaces import Spaces
    from otfuse.core.symmetry import Symmetry
    from otfuse.measure.probe import Side


@dataclass(frozen=True, slots=True, eq=False)
class Canonical:
    """Symmetries that hold in all models, and their tensors, folded as they are asked for, anchor first."""

    found: tuple[Symmetry, ...]
    weights: tuple[CanonicalWeights, ...]
    notes: tuple[str, ...]


def canonical(sides: Sequence[Side], groups: str) -> Canonical:
    """The form and the groups that hold in all models. UnequalError if their widths differ.

    Where a space has another kind in one model, or norms fold otherwise, only permutations are common.
    """
    _require_equal(sides)
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
    return Canonical(tuple(found), weights, tuple(dict.fromkeys(notes)))


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


def _require_equal(sides: Sequence[Side]) -> None:
    ours = sides[0].graph
    for number, side in enumerate(sides[1:], 1):
        for name, shape in ours.shapes.items():
            theirs = side.graph.shapes.get(name)
            if theirs is not None and theirs != shape and name not in ours.unread:
                raise UnequalError(
                    f"aligned: {name} has shape {list(shape)} in the anchor and {list(theirs)} in source {number}; exact maps join "
                    "models of equal widths only, use a recipe of scheme otfusion (otfusion-wts) for these"
                )
