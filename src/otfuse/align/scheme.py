"""What a scheme has to measure, and the schemes by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from otfuse.align.aligned_walk import AlignedWalk
from otfuse.align.otfusion import OTFusionWalk
from otfuse.align.residual import junction_terms, stored_magnitude
from otfuse.align.structure import classifier_tensors, magnitude_key, needed_nodes
from otfuse.errors import DataError
from otfuse.measure.observe import RowFilter
from otfuse.measure.probe import absolute_means, pair_moments

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from otfuse.align.pair import Pair
    from otfuse.core.dataset import Dataset
    from otfuse.core.options import OTFusion
    from otfuse.core.recipe import Recipe
    from otfuse.measure.moments import Moments, Transform
    from otfuse.measure.probe import Side

__all__ = ["Measured", "Walk", "measure", "needs_data", "require_data", "set_aside", "uses_data", "walk"]

Walk: TypeAlias = "OTFusionWalk | AlignedWalk"

_WEIGHED = ("scalar", "matrix")


class Measured:
    """What was measured of a pair: moments by node, and magnitudes of what junctions add."""

    def __init__(self, moments: dict[int, Moments] | None, magnitudes: dict[int, torch.Tensor]) -> None:
        self.moments, self.magnitudes = moments, magnitudes


def needs_data(recipe: Recipe) -> bool:
    """Whether the recipe compares or weighs activations, or chooses by unlabelled inputs."""
    o = recipe.otfusion
    if recipe.scheme == "aligned":
        return recipe.aligned.features == "activations"
    return recipe.scheme == "otfusion" and (
        o.features == "activations" or o.residual in _WEIGHED or (o.solver == "sinkhorn" and o.regulariser == "auto")
    )


def uses_data(recipe: Recipe) -> bool:
    """Whether data that are given are looked at: where they are needed, and where the price of a near-symmetry is measured."""
    return needs_data(recipe) or (recipe.scheme == "aligned" and recipe.aligned.tolerance > 0)


def require_data(recipe: Recipe, data: object) -> None:
    """DataError if the recipe needs data and there are none."""
    if data is None and needs_data(recipe):
        raise DataError(
            "this recipe looks at activations and no data was given: give unlabelled inputs (--data), or use a recipe "
            "that compares weights (aligned, otfusion-wts), with a number as regulariser and a residual other than scalar and matrix"
        )


def measure(
    pair: Pair, recipe: Recipe, data: Dataset | None, progress: Callable[[int, int], None] | None = None
) -> Measured:
    """One or two passes of both models over the probe inputs; nothing if the recipe needs none."""
    options = recipe.otfusion
    weighed, activations = options.residual in _WEIGHED, options.features == "activations"
    if recipe.scheme != "otfusion" or not (weighed or activations):
        return Measured(None, {})
    require_data(recipe, data)
    assert data is not None
    keep = RowFilter(options.tokens, options.unread)
    keep.require(pair.anchor.graph)
    terms = _terms(pair) if weighed else {}
    nodes = needed_nodes(pair) if activations else []
    nodes = sorted({*nodes, *(i for parts in terms.values() for i in parts)})
    moments = pair_moments(pair.anchor, pair.source, data, nodes, keep, progress)
    return Measured(moments, _magnitudes(pair, options, terms, moments, data, keep) if weighed else {})


def walk(
    pair: Pair,
    recipe: Recipe,
    measured: Measured,
    regulariser: float,
    *,
    aside: frozenset[str],
    keep: bool = False,
    last: bool = False,
) -> Walk:
    """The maps of one source, found node by node; ``last``: nobody asks for what was measured again."""
    return OTFusionWalk(
        pair, recipe.otfusion, regulariser, measured.moments, measured.magnitudes, aside=aside, keep=keep, last=last
    )


def set_aside(anchor: Side, recipe: Recipe) -> frozenset[str]:
    """Tensors that stay the anchor's: the classifier where the recipe says so, and what no example input reaches.

    Nothing tells what a tensor holds that no prediction reads: mixed place by place, unaligned, it would be worthless.
    """
    unread = frozenset(anchor.graph.unread)
    return unread | classifier_tensors(anchor.graph) if recipe.keeps_classifier else unread


def _terms(pair: Pair) -> dict[tuple[int, int], list[int]]:
    """Terms of junction parts that are observed."""
    return {key: parts for key, parts in junction_terms(pair).items() if all(pair.observed(i) for i in parts)}


def _magnitudes(
    pair: Pair,
    options: OTFusion,
    terms: dict[tuple[int, int], list[int]],
    moments: dict[int, Moments],
    data: Dataset,
    keep: RowFilter,
) -> dict[int, torch.Tensor]:
    transform: Transform = "standardize" if options.transform == "unit" else options.transform
    affine = {i: moments[i].anchor_affine(transform) for parts in terms.values() for i in parts}
    wanted = {magnitude_key(*key): [(i, affine[i]) for i in parts] for key, parts in terms.items()}
    at = {magnitude_key(*key): key[0] for key in terms}
    found = absolute_means(pair.anchor, data, wanted, keep, at)
    for (junction, part), parts in junction_terms(pair).items():
        if (junction, part) not in terms and not pair.observed(parts[0]):
            found[magnitude_key(junction, part)] = stored_magnitude(pair, parts[0])
    return found
