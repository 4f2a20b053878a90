"""What `barrier` and `sweep` share: parents scored on labelled data, fusions of them in memory, results in a folder."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from otfuse.align.scheme import needs_data
from otfuse.commands.evaluate import score_row
from otfuse.core.dataset import Dataset
from otfuse.evaluate.barrier import along
from otfuse.evaluate.metrics import evaluate_together
from otfuse.evaluate.run import find_device
from otfuse.io import given
from otfuse.io.card import finite
from otfuse.io.stored import Stored
from otfuse.measure.clock import Announcing
from otfuse.pipeline import fuse
from otfuse.stages.order import DIRECT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from otfuse.core.recipe import Recipe
    from otfuse.evaluate.barrier import Line
    from otfuse.measure.clock import Progress
    from otfuse.pipeline import Fused

RESULTS, FIGURE = "results.json", "figure.svg"


class Study:
    """Parents, anchor first, scored on labelled data as each reads them; fused as often as one likes."""

    def __init__(
        self,
        models: Sequence[str],
        data: str,
        *,
        probe: str | None = None,
        batch_size: int = 32,
        device: str = "cpu",
        allow_pickle: bool = False,
        trust_remote_code: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Reads models and data, and scores every parent. Raises DataError if the data have no labels for the task."""
        self.models, self.tell = models, progress or (lambda _stage, _done, _total: None)
        self._at: dict[str, Any] = {"batch_size": batch_size, "device": device}
        self._allowed: dict[str, Any] = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
        self._verified: set[str] = set()
        find_device(device)
        with Announcing(self.tell).stage("load"):
            loaded = given.load(models, device=device, **self._allowed)
            asked = given.asked(data, loaded)
            inputs = asked[0].data if probe is None else given.dataset(probe, loaded)
        self._own_inputs, self.probe = probe is None, Dataset(inputs.inputs, None, inputs.counts)
        self._checkpoints = loaded.checkpoints
        self.parents = []
        for done, (name, one) in enumerate(zip(loaded.names, asked, strict=True)):
            self.tell("evaluate", done, len(models))
            with given.told_of(name, data):
                score = evaluate_together([one], **self._at)
            self.parents.append({"model": name} | score_row(score))
        self.tell("evaluate", len(models), len(models))
        self.asked = asked[0]

    def fuse(self, recipe: Recipe) -> Fused:
        """One model in memory; the gate runs once for each scheme."""
        verify = recipe.scheme not in self._verified
        fused = fuse(self.models, recipe, self.probe, verify=verify, **self._at, **self._allowed)
        self._verified.add(recipe.scheme)
        return fused

    def score(self, model: nn.Module) -> dict[str, Any]:
        """The score of a model of the anchor's class, as a row of ``eval --json``."""
        return score_row(evaluate_together([replace(self.asked, model=model)], **self._at))

    def along(self, anchor: nn.Module, carried: nn.Module, *, points: int, tell: Callable[[int, int], None]) -> Line:
        """Scores along the line between two models of the anchor's class."""
        tokens: dict[str, Any] = {"mask_token_id": self.asked.mask_token_id, "special_ids": self.asked.special_ids}
        return along(anchor, carried, self.asked.data, points=points, progress=tell, **tokens, **self._at)

    def hashes(self) -> list[str]:
        """SHA-256 of every parent's files, anchor first."""
        found = []
        for checkpoint in self._checkpoints:
            assert checkpoint is not None  # models are given by name
            stored = Stored(checkpoint)
            try:
                found.append(stored.hash())
            finally:
                stored.close()
        return found

    def notes(self, recipes: Iterable[Recipe]) -> list[str]:
        """What is to be said of the inputs that these recipes see."""
        looking = any(needs_data(r) or r.scheme not in DIRECT for r in recipes)
        told = "no --probe was given: recipes that look at inputs saw those of the labelled data, without the labels"
        return [told] if looking and self._own_inputs else []


def put(folder: Path, results: Mapping[str, Any], draw: Callable[[Mapping[str, Any], Path], None]) -> None:
    """The picture (figure.svg) and then results.json, each there whole or not at all."""
    text = json.dumps(finite(results), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    draw(results, folder / f".{FIGURE}")
    (folder / f".{RESULTS}").write_text(text, encoding="utf-8")
    for name in (FIGURE, RESULTS):
        (folder / f".{name}").replace(folder / name)
