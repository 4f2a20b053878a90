"""Loss, accuracy and perplexity of one model, or of the mean prediction of several."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from otfuse.core.dataset import Dataset
from otfuse.errors import DataError, UsageError
from otfuse.evaluate.run import evaluating, find_device
from otfuse.evaluate.task import Kind, Task, derive, perplexity

_DIFFERENT = (
    "an ensemble needs models that predict the same; these read the data as different tokens or labels: "
    "leave out those that differ"
)


@dataclass(frozen=True, slots=True)
class Score:
    """How well a model does on ``examples`` examples; ``loss`` is in nats per prediction, the squared error of numbers.

    ``accuracy`` (0 to 1) is given where classes are predicted, ``perplexity`` (e to the loss) where language is.
    """

    examples: int
    loss: float
    accuracy: float | None
    perplexity: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A model, the data as it reads them, and what its tokenizer says of its tokens."""

    model: nn.Module
    data: Dataset
    mask_token_id: int | None = None
    special_ids: Collection[int] = ()


def evaluate(
    model: nn.Module,
    data: Dataset,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    seed: int = 0,
    mask_token_id: int | None = None,
    special_ids: Collection[int] = (),
) -> Score:
    """How well ``model`` predicts ``data``; what it predicts is derived (:func:`otfuse.evaluate.task.derive`).

    The loss is the mean over all predictions, whatever the batch size. ``seed`` chooses the tokens that a masked
    language model has to guess. The model is left as it was.
    Raises DataError if the data do not fit, DeviceError if there is no such device.
    """
    return evaluate_ensemble(
        [model],
        data,
        batch_size=batch_size,
        device=device,
        seed=seed,
        mask_token_id=mask_token_id,
        special_ids=special_ids,
    )


def evaluate_ensemble(
    models: Sequence[nn.Module],
    data: Dataset,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    seed: int = 0,
    mask_token_id: int | None = None,
    special_ids: Collection[int] = (),
) -> Score:
    """As :func:`evaluate` for the mean of the models' output distributions (loss is minus the log of that mean) or numbers."""
    asked = [Asked(model, data, mask_token_id, special_ids) for model in models]
    return evaluate_together(asked, batch_size=batch_size, device=device, seed=seed)


def evaluate_together(
    asked: Sequence[Asked], *, batch_size: int = 64, device: str | torch.device = "cpu", seed: int = 0
) -> Score:
    """As :func:`evaluate_ensemble` for models of which each reads the same examples in its own way.

    DataError if they do not predict the same.
    """
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size}: give a whole number of examples, one or more")
    where, size = find_device(device), asked[0].data.size
    with evaluating([a.model for a in asked], where):
        tasks = [
            derive(a.model, a.data, mask_token_id=a.mask_token_id, special_ids=a.special_ids, seed=seed) for a in asked
        ]
        _check_same(tasks)
        if any(a.data.size != size for a in asked):
            raise DataError(_DIFFERENT)
        loss, right, count = 0.0, 0, 0
        for start in range(0, size, batch_size):
            rows = np.arange(start, min(start + batch_size, size))
            mean, targets = _mean(asked, tasks, rows, where)
            if tasks[0].kind is Kind.NUMBERS:
                loss += float((mean - targets).double().square().sum())
            else:
                loss -= float(mean.gather(1, targets[:, None]).double().sum())
                right += int((mean.argmax(1) == targets).sum())
            count += targets.numel()
    return _score(tasks[0], size, loss, right, count)


def _check_same(tasks: Sequence[Task]) -> None:
    if len({(task.kind, task.classes) for task in tasks}) > 1:
        what = " and ".join(sorted({f"{task.classes} {task.kind} outputs" for task in tasks}))
        raise DataError(
            f"an ensemble needs models that predict the same; these have {what}: leave out those that differ"
        )


def _mean(
    asked: Sequence[Asked], tasks: Sequence[Task], rows: NDArray[np.int64], device: torch.device
) -> tuple[Tensor, Tensor]:
    """``[prediction, class]``: log of the mean of the models' probabilities, or the mean of their numbers; and the targets."""
    total: Tensor | None = None
    wanted: Tensor | None = None
    for a, task in zip(asked, tasks, strict=True):
        logits, targets = task.predict(a.model, a.model, task.batch(a.data, rows), device)
        if wanted is not None and not torch.equal(wanted, targets):
            raise DataError(_DIFFERENT)
        wanted = targets
        if task.kind is Kind.NUMBERS:
            total = logits if total is None else total + logits
        else:
            log_p = logits.log_softmax(1)
            total = log_p if total is None else torch.logaddexp(total, log_p)
    assert total is not None
    assert wanted is not None
    return total / len(asked) if tasks[0].kind is Kind.NUMBERS else total - math.log(len(asked)), wanted


def _score(task: Task, examples: int, total: float, right: int, count: int) -> Score:
    if count == 0:
        raise DataError("the data leave nothing to predict: every label or token is padding, special or -100")
    loss = total / count
    if math.isnan(loss):
        raise DataError("the model's outputs on the data are not numbers (nan); check the data and the model's weights")
    if task.kind is Kind.NUMBERS:
        return Score(examples, loss, None, None)
    language = task.kind.is_language
    return Score(examples, loss, None if language else right / count, perplexity(loss) if language else None)
