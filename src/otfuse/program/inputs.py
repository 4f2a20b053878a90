"""Example inputs, made from the signature of ``forward`` and the configuration of the model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map

from otfuse.core.counted import places, rows_of
from otfuse.errors import TraceError
from otfuse.program.media import image_shape, lookup, placed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn

Inputs: TypeAlias = "Mapping[str, Any] | tuple[Any, ...]"

_TEXT = 8  # tokens of an example: spaces do not depend on the length


def example_inputs(model: nn.Module, *, batch: int = 2) -> dict[str, torch.Tensor]:
    """Random inputs by keyword for a model with a ``config`` (Hugging Face); TraceError if they cannot be made.

    Token ids are distinct and avoid the special ones, so that no row of the example repeats another.
    """
    config = getattr(model, "config", None)
    if config is None:
        raise TraceError(
            f"{type(model).__name__} has no config to make example inputs from: give example_inputs "
            "(a dict of keyword arguments or a tuple)"
        )
    makers = {
        "pixel_values": _pixels,
        "input_values": _waves,
        "input_features": _features,
        "input_ids": _tokens,
        "decoder_input_ids": _decoder_tokens,
    }
    parameters = inspect.signature(model.forward).parameters
    chance = torch.Generator().manual_seed(0)
    made = {name: make(model, batch, chance) for name, make in makers.items() if name in parameters}
    tokens = made.get("input_ids")
    if tokens is not None:
        made |= placed(model, tokens, chance) or {}
    if "decoder_input_ids" in made and not getattr(config, "is_encoder_decoder", False):
        del made["decoder_input_ids"]
    double = next((p.dtype for p in model.parameters() if p.is_floating_point()), None) is torch.float64
    inputs = {name: _real(value, double=double) for name in parameters if (value := made.get(name)) is not None}
    required = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    missing = [name for name in required if name not in inputs]
    if not inputs or missing:
        what = f"no rule to make {', '.join(missing)}" if missing else "forward takes no input known to otfuse"
        raise TraceError(f"{type(model).__name__}: {what} from its config; give example_inputs (a dict or a tuple)")
    return inputs


def _real(value: torch.Tensor, *, double: bool) -> torch.Tensor:
    return value.double() if double and value.is_floating_point() else value


def forward_keywords(model: nn.Module) -> dict[str, Any]:
    """Keywords that make a Hugging Face forward a plain function: a mapping comes out, no cache is kept."""
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and hasattr(model, "config")
    keywords: dict[str, Any] = {}
    if "use_cache" in parameters:
        keywords["use_cache"] = False
    if "return_dict" in parameters or takes_any:
        keywords["return_dict"] = True
    return keywords


def split_inputs(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as positional and keyword arguments."""
    return (tuple(inputs), {}) if isinstance(inputs, tuple) else ((), dict(inputs))


def examples(inputs: Inputs, dim: int = 0) -> int:
    """How many examples there are (or how long they are along ``dim``), as the first tensor has it; 0 if it has not."""
    first = next((value for value in tree_leaves(split_inputs(inputs)) if isinstance(value, torch.Tensor)), None)
    return int(first.shape[dim]) if first is not None and first.ndim > dim else 0


def resized(inputs: Inputs, number: int, dim: int = 0) -> Inputs:
    """The inputs with so many examples (or so long along ``dim``): those given, again and again.

    Every tensor as long there as the first one counts as one of them, and what has several rows for each example.
    """
    given = examples(inputs, dim)
    several = rows_of(inputs, given) if isinstance(inputs, Mapping) and dim == 0 and given else {}

    def again(value: Any, rows: Any = None) -> Any:
        if rows is not None:
            return value.index_select(0, torch.from_numpy(places(rows, np.arange(number) % given)).to(value.device))
        held = isinstance(value, torch.Tensor) and value.ndim > dim and value.shape[dim] == given > 0
        return value.index_select(dim, torch.arange(number, device=value.device) % given) if held else value

    if isinstance(inputs, Mapping):
        return {
            name: again(value, several.get(name)) if name in several else tree_map(again, value)
            for name, value in inputs.items()
        }
    return tree_map(again, inputs)  # type: ignore[no-any-return]


def telling_number(sizes: Iterable[int]) -> int:
    """The smallest prime that divides none of these sizes: so many places are not taken for a factor of units."""
    known = set(sizes) - {0}
    return next(n for n in count(2) if all(n % k for k in range(2, n)) and all(size % n for size in known))


def _pixels(model: nn.Module, batch: int, chance: torch.Generator) -> torch.Tensor | None:
    config = getattr(model, "config", None)
    channels = lookup(config, "num_channels", "in_channels") or 3
    return torch.randn(batch, channels, *image_shape(config), generator=chance)


def _waves(model: nn.Module, batch: int, chance: torch.Generator) -> torch.Tensor | None:
    config = getattr(model, "config", None)
    bins, frames = lookup(config, "num_mel_bins"), lookup(config, "max_length")
    if bins is not None and frames is not None:  # a spectrogram
        return torch.randn(batch, int(frames), int(bins), generator=chance)
    return torch.randn(batch, 1600, generator=chance)


def _features(model: nn.Module, batch: int, chance: torch.Generator) -> torch.Tensor | None:
    config = getattr(model, "config", None)
    bins, positions = lookup(config, "num_mel_bins", "feature_size"), lookup(config, "max_source_positions")
    if bins is None:
        return None
    return torch.randn(batch, int(bins), 2 * int(positions or 32), generator=chance)


def _tokens(model: nn.Module, batch: int, chance: torch.Generator) -> torch.Tensor | None:
    config = getattr(model, "config", None)
    section = getattr(config, "text_config", None) or config
    found = _draw(lookup(section, "vocab_size"), config, section, batch, chance)
    return found if found is not None else torch.randint(32, 127, (batch, _TEXT), generator=chance)  # characters


def _decoder_tokens(model: nn.Module, batch: int, chance: torch.Generator) -> torch.Tensor | None:
    config = getattr(model, "config", None)
    section = getattr(config, "decoder", None) or config
    return _draw(lookup(section, "decoder_vocab_size", "vocab_size"), section, section, batch, chance)


def _draw(size: Any, config: Any, section: Any, batch: int, chance: torch.Generator) -> torch.Tensor | None:
    """Rows of tokens that nothing in the config calls special; None without a vocabulary."""
    if size is None:
        return None
    special = set(_specials(config))
    usable = torch.tensor([token for token in range(int(size)) if token not in special] or [0])
    length = min(_TEXT, int(lookup(section, "max_position_embeddings", "n_positions") or _TEXT))
    rows = [usable[torch.randperm(len(usable), generator=chance)[:length]] for _ in range(batch)]
    return torch.stack(rows)


def _specials(config: Any) -> Iterator[int]:
    for name, value in vars(config).items():
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            yield value
        elif hasattr(value, "to_dict"):
            yield from _specials(value)
