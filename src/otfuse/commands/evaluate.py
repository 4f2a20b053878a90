"""`otfuse eval`: scores of checkpoints and of their ensemble."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otfuse.evaluate.metrics import evaluate_together
from otfuse.evaluate.run import find_device
from otfuse.io import given
from otfuse.measure.clock import Announcing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otfuse.evaluate.metrics import Score
    from otfuse.measure.clock import Progress


def evaluate_checkpoints(
    models: Sequence[str],
    data: str,
    *,
    ensemble: bool = False,
    batch_size: int = 32,
    device: str = "cpu",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Scores of models and, last, of their ensemble."""
    tell = progress or (lambda _stage, _done, _total: None)
    find_device(device)
    with Announcing(tell).stage("load"):
        loaded = given.load(models, device=device, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
        asked = given.asked(data, loaded)
    rows = []
    for done, (name, one) in enumerate(zip(loaded.names, asked, strict=True)):
        tell("evaluate", done, len(models))
        with given.told_of(name, data):
            score = evaluate_together([one], batch_size=batch_size, device=device)
        rows.append({"model": name} | score_row(score))
        tell("evaluate", done + 1, len(models))
    if ensemble:
        score = evaluate_together(asked, batch_size=batch_size, device=device)
        rows.append({"model": "ensemble"} | score_row(score))
    return rows


def score_row(score: Score) -> dict[str, Any]:
    """A score as a row of ``eval --json``: accuracy or perplexity, whichever the task has (regression has neither)."""
    row: dict[str, Any] = {"examples": score.examples, "loss": score.loss}
    if score.accuracy is not None:
        return row | {"accuracy": score.accuracy}
    return row | ({} if score.perplexity is None else {"perplexity": score.perplexity})
