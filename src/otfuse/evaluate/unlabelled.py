"""Unlabelled inputs as a model is asked for its predictions, and which of these count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from otfuse.core.dataset import Dataset
from otfuse.errors import DataError
from otfuse.evaluate.run import NOT_PASSED
from otfuse.evaluate.task import IGNORE, Kind, Task, declared, mask_token, told

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray
    from torch import nn

    from otfuse.core.dataset import Arrays

    Places = NDArray[np.bool_]


def unlabelled(
    model: nn.Module,
    data: Dataset,
    *,
    mask_token_id: int | None = None,
    special_ids: Collection[int] = (),
    seed: int = 0,
) -> tuple[Dataset, Places | None, tuple[str, ...]]:
    """Inputs without labels, ``places[example, position]`` where predictions count (None: everywhere), and notes.

    A masked language model is asked for the tokens that :class:`otfuse.evaluate.task.Task` hides; where labels are given for
    some positions only, these count; padding never does. An encoder-decoder's second input is made from labels where it is
    missing. DataError if nothing counts.
    """
    paired = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    asked, places, notes = data.inputs, _labelled(data), tuple[str, ...]()
    if _is_masked(model) and told(data) is None and "input_ids" in data.inputs:
        try:
            tokens = mask_token(model, mask_token_id, special_ids, labelled=False)
        except DataError:
            places = None
            notes = (
                "no mask token is known, so predictions count at every token, seen or not: add the model's tokenizer",
            )
        else:
            asked, places = _hidden(data, *tokens, seed)
    inputs: dict[str, Any] = {name: array for name, array in asked.items() if name not in NOT_PASSED}
    if paired and data.labels is not None and not any(name.startswith("decoder_inp") for name in inputs):
        inputs |= _second(model, data.labels)
    if places is None:
        there = inputs.get("decoder_attention_mask" if paired else "attention_mask")
        places = None if there is None or there.ndim != 2 else there != 0
    if places is not None and not places.any():
        raise DataError("the data leave nothing to predict: every token is padding, special or -100")
    return Dataset(inputs, None, data.counts), None if places is None or places.all() else places, notes


def _is_masked(model: nn.Module) -> bool:
    bases = tuple(base.__name__ for base in type(model).__mro__)
    return (
        isinstance(model, PreTrainedModel) and declared(bases, getattr(model, "loss_type", None)) is Kind.MASKED_TOKEN
    )


def _hidden(data: Dataset, mask: int, special: tuple[int, ...], seed: int) -> tuple[Arrays, Places]:
    """Inputs with some tokens hidden, and where."""
    classes = int(data.inputs["input_ids"].max()) + 1
    task = Task(
        Kind.MASKED_TOKEN, by_position=False, classes=classes, seed=seed, mask_token_id=mask, special_ids=special
    )
    batch = task.batch(Dataset(data.inputs, None, data.counts), np.arange(data.size))
    return batch.inputs, batch.targets != IGNORE


def _labelled(data: Dataset) -> Places | None:
    """Positions with a label, where some have none."""
    labels = data.labels
    found = None if labels is None or labels.ndim != 2 or labels.dtype.kind not in "iu" else labels != IGNORE
    return None if found is None or bool(found.all()) else found


def _second(model: Any, labels: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
    make = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if make is None:
        return {}
    with torch.no_grad():
        return {"decoder_input_ids": make(torch.from_numpy(labels.astype(np.int64))).numpy()}
