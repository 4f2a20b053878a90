"""What the model is for: only that may pin as output (docs/method.md, 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

# Outputs that a model gives along the way; what another model of the same kind would not be asked for.
_INCIDENTAL = ("past_key_values", "hidden_states", "attentions", "loss", "cache", "router_logits", "_state")
_SIDE = ("encoder_", "decoder_")
VALUES = ("regression", "multi_label_classification")  # problem types of which logits are no distribution


def main_outputs(result: Any) -> tuple[torch.Tensor, ...]:
    """The tensors of ``result`` that predictions are made of; complex ones by their real and imaginary parts.

    They are those of :func:`named_outputs`, in order.
    """
    return tuple(tensor for _, tensor in named_outputs(result))


def named_outputs(result: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors of ``result`` that predictions are made of, with the names that a mapping gives them ("" elsewhere).

    Of a mapping (a Hugging Face output): the logits where there are any, else everything that is neither a cache, nor
    the record of inner states, nor what belongs to one side of an encoder-decoder. Of anything else: all tensors, whole
    numbers and masks too, which must stay exactly what they are.
    """
    if isinstance(result, Mapping):
        kept = {
            name: value
            for name, value in result.items()
            if name == "last_hidden_state" or not (name.startswith(_SIDE) or any(word in name for word in _INCIDENTAL))
        }
        logits = {name: value for name, value in kept.items() if "logits" in name}
        return [(str(n), t) for n, value in (logits or kept or dict(result)).items() for t in _tensors(value)]
    return [("", tensor) for tensor in _tensors(result)]


def distributions(model: Any, named: list[tuple[str, torch.Tensor]]) -> tuple[bool, ...]:
    """Which outputs are logits of a distribution over their last dimension; the others are values as they stand.

    Logits are what a mapping calls so, and what has no name; not where the config says regression or several labels at once.
    """
    if problem_type(model) in VALUES:
        return (False,) * len(named)
    return tuple(
        (not name or "logits" in name) and tensor.is_floating_point() and tensor.ndim > 1 and tensor.shape[-1] > 1
        for name, tensor in named
    )


def problem_type(model: Any) -> str | None:
    """What the config says that the model's logits are, if it says so."""
    found = getattr(getattr(model, "config", None), "problem_type", None)
    return found if isinstance(found, str) else None


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [torch.view_as_real(value.resolve_conj()) if value.is_complex() else value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []
