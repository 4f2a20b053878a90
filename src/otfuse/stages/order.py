"""What each scheme is made of: where it starts, and the stages that follow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from otfuse.align import scheme as aligning
from otfuse.core import recipe as recipes
from otfuse.errors import DataError

if TYPE_CHECKING:
    from otfuse.core.recipe import Recipe

WITHOUT_DATA = START = "aligned"  # what `auto` does without inputs, and what it starts from with them
TRAINED = frozenset({"refined", "distilled"})  # stages that take gradient steps
DIRECT = frozenset({"average", "otfusion", "aligned"})  # from maps straight to the result, tensor by tensor


@dataclass(frozen=True, slots=True)
class Order:
    """``start`` is the recipe of a direct scheme (None: the anchor as it is), called ``name``; ``stages`` follow in turn."""

    start: Recipe | None
    name: str
    stages: tuple[str, ...] = ()


def without_data(recipe: Recipe) -> Recipe:
    """What ``auto`` does where there are no inputs: a direct scheme, with what the recipe sets of it."""
    own = {key: getattr(recipe, key) for key in ("weights", "seed") if key in recipe.model_fields_set}
    options = {f"aligned.{key}": getattr(recipe.aligned, key) for key in recipe.aligned.model_fields_set}
    return recipes.read(WITHOUT_DATA, own | options)


def require_data(recipe: Recipe, data: object) -> None:
    """DataError if a scheme needs inputs and there are none."""
    if recipe.scheme == "auto" and data is None:
        recipe = without_data(recipe)
    found = order(recipe)
    if found.stages and data is None:
        raise DataError(
            f"recipe {recipe.scheme} learns from unlabelled inputs and no data was given: give some (--data), say 100 or more "
            "images or windows of text, or use a recipe that compares weights (aligned)"
        )
    if found.start is not None:
        aligning.require_data(found.start, data)


def order(recipe: Recipe) -> Order:
    """Start and stages of a recipe."""
    if recipe.scheme in DIRECT:
        return Order(recipe, recipe.scheme)
    start = START if recipe.scheme == "auto" else getattr(recipe, recipe.scheme).start
    if recipe.scheme == "auto" or start == "auto":  # the fixed order
        return replace(_begun(START, recipe), stages=("calibrated", "distilled"))
    first = _begun(start, recipe)
    return replace(first, stages=(*first.stages, recipe.scheme))


def without_plain(found: Order, recipe: Recipe) -> Order:
    """The same where models differ in size: there is no plain average of them, so it begins from an aligned one."""
    if found.start is None or found.start.scheme != "average":
        return found
    begun = _begun(START, recipe)
    return Order(begun.start, begun.name, found.stages)


def _begun(start: str, recipe: Recipe) -> Order:
    """A start by the name that recipes give it."""
    if start == "anchor":
        return Order(None, start)
    if start in ("calibrated", "refined"):
        return order(recipe.model_copy(update={"scheme": start}))
    if start == "plain":
        return Order(recipe.model_copy(update={"scheme": "average"}), start)
    features = "activations" if start == "aligned-acts" else "weights"
    aligned = recipe.aligned.model_copy(update={"features": features})
    return Order(recipe.model_copy(update={"scheme": "aligned", "aligned": aligned}), start)
