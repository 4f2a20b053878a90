"""What loss a model has on data: read off the model's outputs, its class in transformers' own tables, and the labels."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto as tables

from otfuse.core.dataset import Dataset, taken
from otfuse.errors import DataError
from otfuse.evaluate.run import NOT_PASSED, call, evaluating, positional, to_tensors, unwrapped_forward
from otfuse.program.outputs import problem_type

IGNORE = -100  # a target that does not count, as everywhere in torch and transformers
MASKED_SHARE = 0.15


class Kind(StrEnum):
    """What the model predicts."""

    CLASSES = "classes"  # one class per example
    TOKEN_CLASSES = "token classes"  # noqa: S105  one class per position
    NEXT_TOKEN = "next token"  # noqa: S105
    MASKED_TOKEN = "masked token"  # noqa: S105
    SEQUENCE = "sequence"  # tokens of a second sequence
    NUMBERS = "numbers"  # of each example: regression

    @property
    def is_language(self) -> bool:
        """Whether perplexity, and not accuracy, is its measure."""
        return self not in (Kind.CLASSES, Kind.TOKEN_CLASSES, Kind.NUMBERS)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Arrays for one call of the model; ``targets[example]`` or ``[example, position]`` fit the logits; -100: not counted.

    Of regression they are float32, ``[example, number]``, and all count.
    """

    inputs: dict[str, NDArray[Any]]
    targets: NDArray[Any]
    counts: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of predictions that count."""
        return self.targets.size if self.targets.dtype.kind == "f" else int((self.targets != IGNORE).sum())

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.targets)

    def take(self, rows: slice) -> Batch:
        """The examples at ``rows``."""
        counts = {name: each[rows] for name, each in self.counts.items()}
        return Batch(taken(self.inputs, self.counts, rows), self.targets[rows], counts)


@dataclass(frozen=True, slots=True)
class Task:
    """What a model predicts on data, and everything needed to ask it. Made by :func:`derive`.

    Masks of a masked language model are a function of (seed, epoch, number of the example) alone, so that every
    model, batch size and process sees the same ones.
    """

    kind: Kind
    by_position: bool
    classes: int
    seed: int = 0
    mask_token_id: int | None = None
    special_ids: tuple[int, ...] = ()
    give_labels: bool = False  # an encoder-decoder makes its second input from them

    def batch(self, data: Dataset, rows: NDArray[np.int64], epoch: int = 0) -> Batch:
        """Inputs and targets of the examples at ``rows``; DataError if a label is none of the classes."""
        part = data.take(rows)
        inputs: dict[str, NDArray[Any]] = dict(part.inputs)
        if self.kind is Kind.NUMBERS:
            return Batch(inputs, _numbers(part, self.classes), part.counts)
        if self.mask_token_id is not None:
            inputs["input_ids"], targets = self._mask(inputs, rows, epoch, self.mask_token_id)
        elif self.kind is Kind.NEXT_TOKEN:
            targets = _next_tokens(part)
        else:
            targets = _labels(part)
        if self.give_labels:
            inputs["labels"] = targets
        counted = targets[targets != IGNORE]
        if counted.size and not 0 <= counted.min() <= counted.max() < self.classes:
            raise DataError(
                f"labels reach from {counted.min()} to {counted.max()}, but the model has {self.classes} classes: "
                f"labels are 0 to {self.classes - 1} (or {IGNORE} for none)"
            )
        return Batch(inputs, targets, part.counts)

    def predict(self, model: nn.Module, like: nn.Module, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
        """``logits[prediction, class]`` and ``targets[prediction]`` of the predictions that count, examples in order.

        Of regression both are ``[example, number]``.
        ``model`` is what is called; ``like`` is the module inside it, if it was wrapped for parallel training.
        """
        logits = call(model, to_tensors(batch.inputs, like, device), by_position=self.by_position)
        targets = torch.from_numpy(batch.targets).to(device)
        if self.kind is Kind.NUMBERS:
            return logits, targets.to(logits.dtype)
        if logits.shape[:-1] != targets.shape:
            raise DataError(
                f"the model predicts {list(logits.shape[:-1])} times where labels are {list(targets.shape)}; make them fit"
            )
        counted = targets != IGNORE
        return logits[counted], targets[counted]

    def loss(self, logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """The sum over what :meth:`predict` gives: cross-entropy (nats), or squared error."""
        if self.kind is Kind.NUMBERS:
            return nn.functional.mse_loss(logits, targets, reduction="sum")
        return nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)

    def _mask(
        self, inputs: dict[str, NDArray[Any]], rows: NDArray[np.int64], epoch: int, mask: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ids = inputs["input_ids"].astype(np.int64)
        allowed = ~np.isin(ids, self.special_ids)
        if "attention_mask" in inputs:
            allowed &= inputs["attention_mask"] != 0
        if "special_tokens_mask" in inputs:
            allowed &= inputs["special_tokens_mask"] == 0
        chosen = np.stack([self._choose(a, int(row), epoch) for a, row in zip(allowed, rows, strict=True)])
        return np.where(chosen, mask, ids), np.where(chosen, ids, IGNORE)

    def _choose(self, allowed: NDArray[np.bool_], row: int, epoch: int) -> NDArray[np.bool_]:
        """15 % of the allowed positions of one example (rounded, at least one where any is allowed)."""
        chance = stream(self.seed, "mask", epoch, row).random(allowed.size)
        count = min(int(allowed.sum()), max(1, round(MASKED_SHARE * int(allowed.sum()))))
        chosen = np.zeros(allowed.size, bool)
        chosen[np.argsort(np.where(allowed, chance, 2.0), kind="stable")[:count]] = True
        return chosen


def stream(seed: int, use: str, *numbers: int) -> np.random.Generator:
    """The generator of one named use of chance: the same in every process, whatever was drawn before."""
    words = [seed, *use.encode(), *numbers]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def derive(
    model: nn.Module,
    data: Dataset,
    *,
    mask_token_id: int | None = None,
    special_ids: Collection[int] = (),
    seed: int = 0,
) -> Task:
    """What ``model`` predicts on ``data``, found by running it on the first example.

    Two-dimensional logits are classes, or numbers where there is one per example or the config says regression. With logits per position the class decides (transformers' tables, then its
    loss type, then whether labels are given). DataError if labels are missing or do not fit, or if a masked language
    model without labels has no mask token. ``mask_token_id`` and ``special_ids`` come from the tokenizer; the token
    ids in the model's config are special too.
    """
    _check(data)
    names = [name for name in data.inputs if name not in NOT_PASSED]
    by_position = positional(model, names)
    labels = told(data)
    paired = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    if paired and data.labels is None:
        raise _missing(model)
    give = (
        paired
        and data.labels is not None
        and data.labels.ndim > 1
        and data.labels.dtype.kind in "iu"
        and "labels" in [p.name for p in unwrapped_forward(model)]
    )
    give = give and not any(name.startswith("decoder_inp") for name in names)
    shape = _first_logits(model, data, by_position=by_position, give_labels=give)
    kind = _kind(model, data, shape, told=labels is not None, paired=paired)
    if kind is not Kind.NUMBERS and data.labels is not None and data.labels.dtype.kind not in "iu":
        raise DataError(f"labels are {data.labels.dtype}; give whole numbers, one per class")
    mask: int | None = None
    special: tuple[int, ...] = ()
    if kind is Kind.MASKED_TOKEN and labels is None:
        mask, special = mask_token(model, mask_token_id, special_ids, labelled=data.labels is not None)
    return Task(kind, by_position, shape[-1], seed, mask, special, give)


def perplexity(loss: float) -> float:
    """``exp(loss)``; infinite where that is beyond a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _check(data: Dataset) -> None:
    lengths = {name: len(data.counts.get(name, array)) for name, array in data.inputs.items()}
    if not lengths or min(lengths.values()) == 0:
        raise DataError("the data are empty; give at least one example")
    if data.labels is not None:
        lengths["labels"] = len(data.labels)
        if data.labels.dtype.kind not in "iuf":
            raise DataError(f"labels are {data.labels.dtype}; give numbers")
        if not np.isfinite(data.labels).all():
            raise DataError("labels have values that are not finite (NaN or infinite); clean the data")
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"arrays have different numbers of examples ({', '.join(f'{k} {v}' for k, v in lengths.items())}); make them equal"
        )


def told(data: Dataset) -> NDArray[np.generic] | None:
    """The labels, unless they only repeat the input: then they tell nothing."""
    if data.labels is None or data.labels.ndim != 2:
        return data.labels
    tokens = _tokens(data)
    if tokens is None or tokens.shape != data.labels.shape:
        return data.labels
    return None if bool(((data.labels == tokens) | (data.labels == IGNORE)).all()) else data.labels


def _tokens(data: Dataset) -> NDArray[np.generic] | None:
    if "input_ids" in data.inputs:
        return data.inputs["input_ids"]
    whole = [array for array in data.inputs.values() if array.dtype.kind in "iu" and array.ndim == 2]
    return whole[0] if len(whole) == len(data.inputs) == 1 else None


def _kind(model: nn.Module, data: Dataset, shape: tuple[int, ...], *, told: bool, paired: bool) -> Kind:
    dims = len(shape)
    if dims == 2:
        if data.labels is None:
            raise _missing(model)
        return Kind.NUMBERS if shape[-1] == 1 or problem_type(model) == "regression" else Kind.CLASSES
    if dims != 3:
        raise DataError(
            f"{type(model).__name__} returns logits of {dims} dimensions; [examples, classes] or one more are understood"
        )
    if data.labels is not None and data.labels.ndim == 1:
        raise DataError(
            f"labels are one per example, but {type(model).__name__} predicts every position; give labels[example, position]"
        )
    if paired:
        return Kind.SEQUENCE
    known = None
    if isinstance(model, PreTrainedModel):
        known = declared(tuple(base.__name__ for base in type(model).__mro__), getattr(model, "loss_type", None))
    if known is not None:
        return known
    if told:
        return Kind.TOKEN_CLASSES
    if isinstance(model, PreTrainedModel) or _tokens(data) is None:
        raise _missing(model)
    return Kind.NEXT_TOKEN


@cache
def declared(bases: tuple[str, ...], loss_type: str | None) -> Kind | None:
    """What the library's tables say that a class of one of these names predicts, then its loss type."""
    causal = set(tables.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    causal |= set(tables.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values())
    masked = set(tables.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values())
    for name in bases:  # a user's subclass is what its parent is
        if name in causal or name in masked:
            return Kind.NEXT_TOKEN if name in causal else Kind.MASKED_TOKEN
    return {"ForCausalLM": Kind.NEXT_TOKEN, "ForMaskedLM": Kind.MASKED_TOKEN}.get(loss_type or "")


def _first_logits(model: nn.Module, data: Dataset, *, by_position: bool, give_labels: bool) -> tuple[int, ...]:
    first = data.take(slice(0, 1))
    arrays: dict[str, NDArray[Any]] = dict(first.inputs)
    if give_labels:
        arrays["labels"] = _labels(first)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with evaluating([model], device):
        return tuple(call(model, to_tensors(arrays, model, device), by_position=by_position).shape)


def _numbers(data: Dataset, count: int) -> NDArray[np.float32]:
    assert data.labels is not None  # derive() saw them
    wanted = (data.size, count)
    if data.labels.shape not in ((wanted, wanted[:1]) if count == 1 else (wanted,)):
        raise DataError(
            f"labels are {list(data.labels.shape)} where the model predicts {list(wanted)} numbers; make them fit"
        )
    return data.labels.reshape(wanted).astype(np.float32)


def _labels(data: Dataset) -> NDArray[np.int64]:
    assert data.labels is not None  # derive() saw them
    return data.labels.astype(np.int64)


def _next_tokens(data: Dataset) -> NDArray[np.int64]:
    """``targets[:, t]`` is token ``t + 1``, where both it and token ``t`` are there."""
    given = data.labels if data.labels is not None and data.labels.ndim == 2 else _tokens(data)
    if given is None:
        raise DataError("no array 'input_ids': a language model is measured on the tokens it reads; name them so")
    targets = np.full(given.shape, IGNORE, np.int64)
    targets[:, :-1] = given[:, 1:]
    if "attention_mask" in data.inputs and data.inputs["attention_mask"].shape == given.shape:
        there = data.inputs["attention_mask"] != 0
        targets[:, :-1][~(there[:, 1:] & there[:, :-1])] = IGNORE
    return targets


def mask_token(
    model: nn.Module, given: int | None, special: Collection[int], *, labelled: bool
) -> tuple[int, tuple[int, ...]]:
    """The mask token, and all tokens that are never masked; DataError if there is none."""
    config = getattr(model, "config", None)
    values = config.to_dict() if config is not None and hasattr(config, "to_dict") else {}
    named = {key: value for key, value in values.items() if key.endswith("_token_id") and isinstance(value, int)}
    mask = named.get("mask_token_id") if given is None else given
    if mask is None and labelled:
        raise DataError(
            "no mask token: labels that repeat the tokens leave nothing to guess until some tokens are masked, which needs "
            "mask_token_id; add the model's tokenizer, or mask tokens in 'input_ids' yourself"
        )
    if mask is None:
        raise DataError(
            "no mask token: a masked language model without labels needs mask_token_id; add its tokenizer or labels"
        )
    return mask, tuple(sorted({mask, *special, *named.values()}))


def _missing(model: nn.Module) -> DataError:
    return DataError(
        f"the data have no labels and {type(model).__name__} needs them; add an integer array named 'labels'"
    )
