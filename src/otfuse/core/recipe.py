"""Recipes: a scheme with every option set, closed to unknown keys and values."""

from __future__ import annotations

import difflib
import math
import re
import reprlib
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, field_validator

from otfuse.core import recipe_text
from otfuse.core.options import Aligned, Auto, Calibrated, Closed, Distilled, OTFusion, Refined
from otfuse.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_SHOWN = 60  # characters of a value that a sentence repeats


SECTIONS: dict[str, type[Closed]] = {
    "otfusion": OTFusion,
    "aligned": Aligned,
    "calibrated": Calibrated,
    "refined": Refined,
    "distilled": Distilled,
    "auto": Auto,
}
_USES = {  # sections that a scheme reads, its own apart
    "calibrated": ("aligned", "refined"),
    "refined": ("aligned",),
    "distilled": ("aligned", "calibrated", "refined"),
    "auto": ("aligned", "calibrated", "distilled"),
}


class Recipe(Closed):
    """A scheme and its options. ``weights`` is one per model, anchor first; None means equal weights."""

    scheme: Literal["average", "otfusion", "aligned", "calibrated", "refined", "distilled", "auto"]
    weights: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = Field(default=None, strict=False)
    seed: int = Field(default=0, ge=0, lt=2**63)  # what a torch generator takes
    otfusion: OTFusion = OTFusion()
    aligned: Aligned = Aligned()
    calibrated: Calibrated = Calibrated()
    refined: Refined = Refined()
    distilled: Distilled = Distilled()
    auto: Auto = Auto()

    @field_validator(*SECTIONS, mode="before")
    @classmethod
    def _empty_section(cls, value: Any) -> Any:
        """``otfusion:`` with nothing below it: every option has its default."""
        return {} if value is None else value

    @field_validator("weights")
    @classmethod
    def _sum_to_one(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and not math.isclose(sum(value), 1.0, abs_tol=1e-6):
            msg = f"weights must sum to one, these sum to {sum(value):g}"
            raise ValueError(msg)
        return value

    @property
    def keeps_classifier(self) -> bool:
        """Whether the anchor's classifier is set aside: sources need not have its classes."""
        return self.scheme == "otfusion" and self.otfusion.classifier == "anchor"

    def weights_for(self, models: int) -> tuple[float, ...]:
        """Mixing weights of that many models, anchor first; RecipeError if the recipe gives another number."""
        if self.weights is None:
            return (1 / models,) * models
        if len(self.weights) != models:
            msg = f"weights: {len(self.weights)} given for {models} models; give one per model, anchor first"
            raise RecipeError(msg)
        return self.weights

    def to_yaml(self) -> str:
        """The recipe with every option of its scheme set, as YAML."""
        unused = set(SECTIONS) - {self.scheme, *_USES.get(self.scheme, ())}
        text = yaml.safe_dump(self.model_dump(mode="json", exclude=unused), sort_keys=False)
        return text.replace("weights: null\n", "weights: null  # equal: 1/k each for k models\n", 1)


def names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(p.name.removesuffix(".yaml") for p in _folder().iterdir() if p.name.endswith(".yaml"))


def read(recipe: str | Path | Mapping[str, Any] | Recipe, options: Mapping[str, Any] | None = None) -> Recipe:
    """A checked recipe from a name, a YAML file, a mapping or a recipe, with dotted ``options`` laid over it.

    Raises :class:`RecipeError` naming the key, what is allowed and the nearest right one.
    """
    where = "recipe" if isinstance(recipe, (Mapping, Recipe)) else f"recipe {recipe}"
    data = _nested(recipe, where)
    for key, value in (options or {}).items():
        _set(data, key.split("."), value, key)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(_sentence(error, where)) from None


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``["otfusion.solver=emd", ...]`` as a dict; values are read as YAML."""
    options = {}
    for pair in pairs:
        key, sep, text = pair.partition("=")
        shown = pair if len(pair) <= _SHOWN else f"{pair[:_SHOWN]}..."
        if not sep or not key:
            msg = f"--set {shown}: write KEY=VALUE, for example --set otfusion.solver=emd"
            raise RecipeError(msg)
        try:
            options[key] = recipe_text.load(text)
        except recipe_text.RecipeTextError as error:
            msg = f"--set {shown}: {error}"
            raise RecipeError(msg) from None
    return options


def _folder() -> Any:
    return resources.files("otfuse") / "recipes"


def _nested(recipe: Any, where: str) -> dict[str, Any]:
    from pathlib import Path

    if isinstance(recipe, Recipe):
        return recipe.model_dump(mode="python", exclude_unset=True)
    if not isinstance(recipe, (str, Path)):
        return {k: dict(v) if isinstance(v, dict) else v for k, v in recipe.items()}
    if str(recipe) in names():
        text = (_folder() / f"{recipe}.yaml").read_text()
    elif Path(recipe).is_file():
        try:
            text = Path(recipe).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"{where}: cannot be read as text ({error.__class__.__name__}); give a YAML file"
            raise RecipeError(msg) from None
    else:
        msg = f"{where}: no such recipe or file; {_nearest(str(recipe), names())}"
        raise RecipeError(msg)
    try:
        data = recipe_text.load(text)
    except recipe_text.RecipeTextError as error:
        msg = f"{where}: {error}"
        raise RecipeError(msg) from None
    if not isinstance(data, dict):
        msg = f"{where}: a recipe is a mapping of keys, beginning with 'scheme:'"
        raise RecipeError(msg)
    return data


def _set(data: dict[str, Any], path: list[str], value: Any, key: str) -> None:
    for part in path[:-1]:
        inner = {} if data.get(part) is None else data[part]
        if not isinstance(inner, dict):
            msg = f"option {key}: {part!r} holds a value, not a section"
            raise RecipeError(msg)
        data[part] = data = dict(inner)
    data[path[-1]] = value
    if (
        path[-1] == "features"
        and value == "weights"
        and data.get("transform") in ("standardize", "center", "normalize")
    ):
        del data["transform"]  # the option moves to the other kind of features: its default transform goes with it


def _nearest(word: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(allowed)}"


def _unknown(key: str) -> str:
    """What is said of a key that does not exist: the nearest one of any section, and those beside it."""
    section, _, word = key.rpartition(".")
    keys = [*Recipe.model_fields, *(f"{part}.{name}" for part, own in SECTIONS.items() for name in own.model_fields)]

    def nearness(known: str) -> tuple[float, bool]:
        place, _, name = known.rpartition(".")
        return difflib.SequenceMatcher(None, word.lower(), name).ratio(), place == section

    best = max(keys, key=nearness)
    if best == key:
        return f"unknown key {key!r}; in a recipe {word!r} stands below {section!r}: write {section}: {{{word}: ...}}"
    hint, place = (f"did you mean {best!r}? ", best.rpartition(".")[0]) if nearness(best)[0] >= 0.5 else ("", section)
    beside = SECTIONS.get(place, Recipe).model_fields
    return f"unknown key {key!r}; {hint}allowed{place and f' in {place}'}: {', '.join(beside)}"


def _shown(value: Any) -> str:
    short = reprlib.Repr()
    short.maxstring = short.maxother = _SHOWN
    try:
        return short.repr(value)
    except ValueError:  # Python writes no number of more than some thousand digits
        return "a number of thousands of digits"


def _sentence(error: ValidationError, where: str) -> str:
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")  # a wrong key explains a missing one
    location = tuple(p for p in first["loc"] if p not in ("constrained-float", "float", "literal['auto']"))
    key = ".".join(map(str, location)) if location else "recipe"
    kind, given = first["type"], first.get("input")
    if kind in ("extra_forbidden", "invalid_key"):
        return f"{where}: {_unknown(key)}"
    if kind == "missing":
        return f"{where}: key {key!r} is missing; add it: {' or '.join(get_args(Recipe.model_fields[key].annotation))}"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(first.get("ctx", {}).get("expected", "")))
        return f"{where}: {key} cannot be {_shown(given)}; {_nearest(str(given), allowed)}"
    reason = first["msg"].removeprefix("Value error, ")
    if key.endswith("regulariser"):
        reason = "allowed: a number above zero, or auto"
    if location[:1] == ("weights",) and kind != "value_error":
        reason = "allowed: one number from 0 to 1 per model, anchor first, for example [0.5, 0.5]"
    if kind == "model_type":
        reason = f"it is a section, whose keys are {', '.join(SECTIONS[key].model_fields)}"
    return (
        f"{where}: {key} cannot be {_shown(given)}: {reason}"
        if kind != "value_error" or location
        else f"{where}: {reason}"
    )
