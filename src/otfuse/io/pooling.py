"""The layers that sentence-transformers puts behind a transformer, in operators that every flow rule knows.

Each takes and gives ``features`` by name: ``token_embeddings`` ``[example, token, unit]``, ``attention_mask`` ``[example, token]``
and, once tokens are pooled, ``sentence_embedding`` ``[example, unit]``. Settings are those of the package's config.json, of old and
new versions; what only its training reads is left aside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    Features = dict[str, torch.Tensor]

_MODES = {  # new names, by the switches of older versions
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLED = "sentence_embedding"


class Pooling(nn.Module):
    """Embeddings of tokens as one, or several beside each other, of each text: weighted sums over the tokens, or the largest."""

    def __init__(self, pooling_mode: str | list[str] | None = None, **settings: Any) -> None:
        super().__init__()
        modes = [pooling_mode] if isinstance(pooling_mode, str) else pooling_mode
        if modes is None:
            modes = [mode for switch, mode in _MODES.items() if settings.get(switch)] or ["mean"]
        if unknown := [mode for mode in modes if mode not in _MODES.values()]:
            msg = f"unknown pooling {unknown[0]!r}"
            raise ValueError(msg)
        self.modes = tuple(modes)

    def extra_repr(self) -> str:
        """The modes, in which two models may differ."""
        return ", ".join(self.modes)

    def forward(self, features: Features) -> Features:
        """Features with the pooled embedding; texts without any token give zeros (of the largest: minus infinity)."""
        tokens = features["token_embeddings"]
        mask = features["attention_mask"].to(tokens.dtype)
        pooled = [_largest(tokens, mask) if mode == "max" else _weighted(tokens, mask, mode) for mode in self.modes]
        return features | {_POOLED: torch.cat(pooled, dim=-1) if len(pooled) > 1 else pooled[0]}


def _largest(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return tokens.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(dim=1)


def _weighted(tokens: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    weights = mask
    if mode == "cls":
        weights = mask * (mask.cumsum(1) == 1)
    elif mode == "lasttoken":
        weights = mask * (mask.flip(1).cumsum(1).flip(1) == 1)
    elif mode == "weightedmean":  # by place, counted from the first token that is one
        weights = mask * (mask.cumsum(1) > 0).to(mask.dtype).cumsum(1)
    total = (tokens * weights.unsqueeze(-1)).sum(dim=1)
    if mode in ("cls", "lasttoken"):
        return total
    number = weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
    return total / (number.sqrt() if mode == "mean_sqrt_len_tokens" else number)


class _Named(nn.Module):
    """A layer that reads one of the features and writes one."""

    def __init__(self, module_input_name: str | None = None, module_output_name: str | None = None) -> None:
        super().__init__()
        self.reads = module_input_name or _POOLED
        self.writes = module_output_name or self.reads

    def extra_repr(self) -> str:
        """The features, in which two models may differ."""
        return f"{self.reads} -> {self.writes}"

    def apply_to(self, value: torch.Tensor) -> torch.Tensor:
        """What the layer makes of a feature."""
        return value

    def forward(self, features: Features) -> Features:
        """Features with what the layer makes of one of them."""
        return features | {self.writes: self.apply_to(features[self.reads])}


class Dense(_Named):
    """A linear map and a function, and what went in beside what comes out if so asked."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation_function: nn.Module | None = None,
        *,
        bias: bool = True,
        use_residual: bool = False,
        module_input_name: str | None = None,
        module_output_name: str | None = None,
        **_: Any,
    ) -> None:
        super().__init__(module_input_name, module_output_name)
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation_function = nn.Tanh() if activation_function is None else activation_function
        self.use_residual = use_residual
        if use_residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)

    def apply_to(self, value: torch.Tensor) -> torch.Tensor:
        """The embedding through the layer."""
        made: torch.Tensor = self.activation_function(self.linear(value))
        if not self.use_residual:
            return made
        return made + (self.residual(value) if hasattr(self, "residual") else value)


class Normalize(_Named):
    """Embeddings of length one."""

    def __init__(self, module_input_name: str | None = None, module_output_name: str | None = None, **_: Any) -> None:
        super().__init__(module_input_name, module_output_name)

    def apply_to(self, value: torch.Tensor) -> torch.Tensor:
        """The embedding over its length."""
        return nn.functional.normalize(value, p=2, dim=-1)


class LayerNorm(_Named):
    """A norm over the embedding."""

    def __init__(self, dimension: int, **_: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dimension)

    def apply_to(self, value: torch.Tensor) -> torch.Tensor:
        """The embedding, normed."""
        normed: torch.Tensor = self.norm(value)
        return normed


class Dropout(_Named):
    """Nothing, in evaluation."""

    def __init__(self, **_: Any) -> None:
        super().__init__()


LAYERS: dict[str, Callable[..., nn.Module]] = {
    layer.__name__: layer for layer in (Pooling, Dense, Normalize, LayerNorm, Dropout)
}


def activation(name: str) -> nn.Module:
    """The module of torch that a config names by its full path; ValueError for any other: its code would have to be run."""
    place, _, kind = name.rpartition(".")
    found = getattr(nn, kind, None)
    if not place.startswith("torch.nn") or not (isinstance(found, type) and issubclass(found, nn.Module)):
        msg = f"the function {name} is none of torch.nn"
        raise ValueError(msg)
    made: nn.Module = found()
    return made
