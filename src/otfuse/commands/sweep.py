"""`otfuse sweep`: a grid over keys of a recipe, fused and scored one after another; a run that was cut off goes on."""

from __future__ import annotations

import itertools
import json
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from otfuse.commands.study import Study, put
from otfuse.core import recipe as recipes
from otfuse.core import recipe_text
from otfuse.errors import CheckpointError, DeviceError, OtfuseError, RecipeError, UsageError
from otfuse.io import writer
from otfuse.io.ledger import Ledger
from otfuse.report.figure import draw_sweep

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from otfuse.core.recipe import Recipe
    from otfuse.measure.clock import Progress

DEFAULT_RECIPE = "aligned"  # needs no data
LEDGER = "results.jsonl"


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of the grid: the values by key, and the recipe that they make, or the sentence that refuses it."""

    values: Mapping[str, Any]
    recipe: Recipe | None
    refused: str = ""


def sweep_checkpoints(
    anchor: str,
    sources: Sequence[str],
    data: str,
    grid: Sequence[str],
    out: Path,
    *,
    recipe: str | None = None,
    probe: str | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Every point of the grid, as written to ``out`` (results.jsonl line by line; results.json and figure.svg at the end).

    ``grid`` holds texts ``KEY=V1,V2,...``, the keys dotted as for ``--set``, or ``recipe``. ``rows``: best first by loss, those
    refused last, each with its ``point`` (values by key). What ``out`` holds of the same recipe, files and data is not
    done again. Raises UsageError for a malformed grid, RecipeError if every point is refused beforehand, OutputError
    for a folder of another run.
    """
    axes = parse_grid(grid)
    points = _points(axes, recipe)
    models = (anchor, *sources)
    ledger = Ledger(out / LEDGER)
    if not ledger.exists:
        writer.check_target(out, beside=models)
    study = Study(
        models, data, probe=probe, batch_size=batch_size, device=device,
        allow_pickle=allow_pickle, trust_remote_code=trust_remote_code, progress=progress,
    )  # fmt: skip
    run = {"hashes": study.hashes(), "data": study.asked.data.digest(), "probe": study.probe.digest()}
    ledger.open(run)
    rows, notes = _rows(study, ledger, points)
    found: dict[str, Any] = {"command": "sweep", "anchor": anchor, "sources": list(sources), "grid": axes}
    found |= {"parents": study.parents, "rows": rows, "notes": notes, "run": run}
    with writer.one_sentence(out):
        put(out, found, draw_sweep)
    return found


def _rows(study: Study, ledger: Ledger, points: Sequence[Point]) -> tuple[list[dict[str, Any]], list[str]]:
    """A row per point, best first, and what there is to say of them."""
    rows, notes = list[dict[str, Any]](), study.notes(p.recipe for p in points if p.recipe)
    for done, point in enumerate(points):
        study.tell("sweep", done, len(points))
        rows.append({"point": point.values} | _result(study, ledger, point))
        notes += rows[-1].pop("notes", ())
    study.tell("sweep", len(points), len(points))
    return sorted(rows, key=_order), list(dict.fromkeys(notes))


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """``["otfusion.residual=mean,skip", ...]`` as values by key, read as YAML; UsageError for what is malformed or twice."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        key, sep, listed = text.partition("=")
        if not sep or not key or not listed.strip():
            raise UsageError(f"--grid {text}: write KEY=V1,V2,..., for example --grid otfusion.residual=mean,skip")
        try:
            values = recipe_text.load(f"[{listed}]")
            shown = [json.dumps(value) for value in values]
        except (recipe_text.RecipeTextError, TypeError):
            raise UsageError(
                f"--grid {text}: these are no values with commas between them; write KEY=V1,V2,..."
            ) from None
        if key in grid or len(set(shown)) < len(shown):
            what = f"key {key}" if key in grid else "a value"
            raise UsageError(f"--grid {text}: {what} is given twice; name every key and every value once")
        grid[key] = values
    if not grid:
        raise UsageError(
            "--grid is missing: write --grid KEY=V1,V2,..., for example --grid otfusion.residual=mean,skip"
        )
    return grid


def _points(grid: Mapping[str, Sequence[Any]], base: str | None) -> list[Point]:
    """All combinations, the last key fastest; RecipeError if no recipe allows its own."""
    if base is not None and "recipe" in grid:
        raise UsageError(f"--recipe {base}: the grid names recipes too; give one of the two")
    found = []
    for combined in itertools.product(*grid.values()):
        values = dict(zip(grid, combined, strict=True))
        options = {key: value for key, value in values.items() if key != "recipe"}
        try:
            found.append(Point(values, recipes.read(str(values.get("recipe", base or DEFAULT_RECIPE)), options)))
        except RecipeError as error:
            found.append(Point(values, None, str(error)))
    if all(point.recipe is None for point in found):
        raise RecipeError(
            found[0].refused if len(found) == 1 else f"no point of the grid can be fused: {found[0].refused}"
        )
    return found


def _result(study: Study, ledger: Ledger, point: Point) -> dict[str, Any]:
    """What is known of a point, or found now and kept; or ``refused``, which is tried again next time."""
    if point.recipe is None:
        return {"refused": point.refused}
    settings = point.recipe.model_dump(mode="json")
    if (known := ledger.find(settings)) is not None:
        return known
    try:
        began = time.perf_counter()
        fused = study.fuse(point.recipe)
        made = {"seconds": round(time.perf_counter() - began, 3), **study.score(fused.model)}
    except (CheckpointError, DeviceError):  # no other point would do better
        raise
    except OtfuseError as error:
        return {"refused": " ".join(str(error).split())}
    return ledger.add(settings, made | {"notes": list(fused.report.notes)})


def _order(row: Mapping[str, Any]) -> tuple[bool, float]:
    """Best first; a loss that is no number after all others, what was refused last."""
    loss = row.get("loss")
    return "refused" in row, math.inf if loss is None else loss
