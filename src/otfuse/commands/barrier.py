"""`otfuse barrier`: loss along the straight line between an anchor and a source carried into its basis, recipe by recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otfuse.commands.evaluate import score_row
from otfuse.commands.study import Study, put
from otfuse.core import recipe as recipes
from otfuse.errors import MatchError, RecipeError
from otfuse.evaluate.barrier import require_points
from otfuse.io import given, writer
from otfuse.io.staging import staged
from otfuse.report.figure import draw_barrier
from otfuse.stages.order import DIRECT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from otfuse.core.recipe import Recipe
    from otfuse.evaluate.barrier import Line
    from otfuse.measure.clock import Progress

PLAIN = "vanilla"  # its line stands beside every other
DEFAULT_RECIPE = "aligned"  # needs no data


def barrier_of_checkpoints(
    anchor: str,
    source: str,
    data: str,
    names: Sequence[str] = (),
    *,
    points: int = 11,
    out: Path | None = None,
    probe: str | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The line of the plain average and of every recipe in ``names``, as written to ``out`` (results.json, figure.svg).

    ``parents``: rows as of ``eval --json``; ``lines``: per recipe its ``points`` (``at`` from 0, the anchor, to 1, the
    carried source), the ``barrier`` (largest gap in nats, 0 or more), where it is (``highest``), and the gap in the ``middle``
    (None where no point lies there). Raises RecipeError for a recipe that carries no source.
    """
    require_points(points)
    chosen = {name: _carrying(name) for name in dict.fromkeys((PLAIN, *(names or (DEFAULT_RECIPE,))))}
    if out is not None:
        writer.check_target(out, beside=(anchor, source))
    study = Study(
        (anchor, source), data, probe=probe, batch_size=batch_size, device=device,
        allow_pickle=allow_pickle, trust_remote_code=trust_remote_code, progress=progress,
    )  # fmt: skip
    lines, notes = _lines(study, chosen, points, data, required=names)
    found: dict[str, Any] = {"command": "barrier", "anchor": anchor, "source": source, "data": data, "probe": probe}
    found |= {"hashes": study.hashes(), "parents": study.parents, "lines": lines, "notes": notes}
    if out is not None:
        with writer.one_sentence(out), staged(out) as folder:
            put(folder, found, draw_barrier)
    return found


def _lines(
    study: Study, chosen: Mapping[str, Recipe], points: int, data: str, required: Sequence[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row per recipe, and notes; where the models have no plain average and none was ``required``, a note says why."""
    notes, lines = study.notes(chosen.values()), list[dict[str, Any]]()
    for index, (name, recipe) in enumerate(chosen.items()):
        tell = _told(study, index * points, len(chosen) * points)
        try:
            ends, used, said = _ends(study, recipe)
        except MatchError as error:
            if name != PLAIN or PLAIN in required:
                raise
            notes.append(f"there is no line of the plain average: {error}")
            continue
        with given.told_of(f"on the line of {name}", data):
            line = study.along(*ends, points=points, tell=tell)
        lines.append(_row(name, used, line))
        notes += said
    return lines, list(dict.fromkeys(notes))


def _carrying(name: str) -> Recipe:
    """The recipe; RecipeError if its fusion is no point of a line from the anchor to a carried source.

    That of a direct scheme with weights (1 - t, t) is the point t, with the same maps for every t.
    """
    recipe = recipes.read(name)
    if recipe.scheme not in DIRECT:
        raise RecipeError(
            f"recipe {name}: scheme {recipe.scheme} carries no source as a whole into the anchor's basis, so no line leads "
            f"there; give recipes of the schemes {', '.join(sorted(DIRECT))}"
        )
    return recipe


def _ends(study: Study, recipe: Recipe) -> tuple[tuple[nn.Module, nn.Module], Recipe, list[str]]:
    """The anchor and the carried source as the recipe's fusion takes them (it may rewrite both), the recipe as used, notes."""
    notes = [] if recipe.weights is None else ["the weights of a recipe are not used here: the line has all of them"]
    recipe = recipes.read(recipe, {"weights": None})
    if recipe.scheme == "otfusion" and recipe.otfusion.regulariser == "auto":
        recipe = study.fuse(recipe).report.recipe  # chosen once, for the middle
    ends = [study.fuse(recipes.read(recipe, {"weights": weights})) for weights in ([1.0, 0.0], [0.0, 1.0])]
    notes += [note for end in ends for note in end.report.notes]
    return (ends[0].model, ends[1].model), recipe, notes


def _told(study: Study, before: int, total: int) -> Callable[[int, int], None]:
    study.tell("line", before, total)
    return lambda done, _points: study.tell("line", before + done, total)


def _row(name: str, recipe: Recipe, line: Line) -> dict[str, Any]:
    points = [{"at": t} | score_row(score) for t, score in zip(line.at, line.scores, strict=True)]
    figures = {"barrier": line.barrier, "highest": line.highest, "middle": line.middle}
    settings = recipe.model_dump(mode="json", exclude_none=True)
    return {"recipe": name, **figures, "points": points, "settings": settings}
