"""Example inputs of models that read images or sounds where tokens stand for them.

How many tokens stand for one is asked of the model: its features are worked out without numbers (fake tensors), and
counted. What shape images have is told by the names that ``forward`` takes and by the config; where both leave it open, the
first shape that the model takes counts.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from otfuse.program.known import Known
from otfuse.program.state import evaluating

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from torch import nn

    Tensors = dict[str, torch.Tensor]

_KINDS = {"pixel_values": "image", "input_features": "audio"}
_LEAD = 2  # tokens before the image


def lookup(config: Any, *names: str) -> Any:
    """The first of ``names`` that the config or one of its sub-configs holds, or None."""
    for name in names:
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    for value in vars(config).values():
        if hasattr(value, "to_dict"):
            found = lookup(value, *names)
            if found is not None:
                return found
    return None


def placed(model: nn.Module, tokens: torch.Tensor, chance: torch.Generator) -> Tensors | None:
    """``tokens[batch, text]`` with one image or sound per row among them, and all that belongs to it; None if nowhere.

    Without a shape that the model takes there are none.
    """
    names, config = inspect.signature(model.forward).parameters, getattr(model, "config", None)
    for media, kind in _KINDS.items():
        if media not in names:
            continue
        place = _placeholder(config, kind)
        marks = f"{kind}_embeds_position_mask" in names
        crossed = {"cross_attention_mask", "aspect_ratio_mask"} <= names.keys()
        if place is None and not marks:
            continue
        for form in _forms(media, config, names, len(tokens), chance):
            count = 1 if crossed else _count(model, kind, form)
            if count:
                made = _among(tokens, place, count // len(tokens) or 1, names, kind) | form
                if crossed:  # every token sees all tiles
                    made["cross_attention_mask"] = torch.ones(
                        *made["input_ids"].shape, *form["aspect_ratio_mask"].shape[1:], dtype=torch.int64
                    )
                return made
    return None


def _placeholder(config: Any, kind: str) -> int | None:
    found = lookup(config, f"{kind}_token_id", f"{kind}_token_index")
    return found if isinstance(found, int) else None


def _among(tokens: torch.Tensor, place: int | None, count: int, names: Collection[str], kind: str) -> Tensors:
    """The tokens with ``count`` places for one image in every row, and the masks that tell them apart."""
    batch = len(tokens)
    held = torch.full((batch, count), place) if place is not None else tokens[:, :1].expand(batch, count)
    ids = torch.cat([tokens[:, :_LEAD], held, tokens[:, _LEAD:]], 1)
    here = torch.zeros(ids.shape, dtype=torch.bool)
    here[:, _LEAD : _LEAD + count] = True
    made = {"input_ids": ids}
    if f"{kind}_embeds_position_mask" in names:
        made[f"{kind}_embeds_position_mask"] = here
    if "mm_token_type_ids" in names:
        made["mm_token_type_ids"] = here.long()
    if "feature_attention_mask" in names:
        made["attention_mask"] = torch.ones_like(ids)
    return made


def _forms(media: str, config: Any, names: Collection[str], batch: int, chance: torch.Generator) -> Iterator[Tensors]:
    """Images (or sounds), one per example, in the shapes in which models take them."""

    def drawn(*shape: int) -> Tensors:
        return {media: torch.randn(shape, generator=chance)}

    if media == "input_features":
        bins, positions = lookup(config, "num_mel_bins", "feature_size"), lookup(config, "max_source_positions")
        frames = 2 * int(positions or 32)
        made = drawn(batch, int(bins or 80), frames)
        if "feature_attention_mask" in names:
            made["feature_attention_mask"] = torch.ones(batch, frames, dtype=torch.int64)
        yield made
        return
    channels = lookup(config, "num_channels", "in_channels", "in_chans") or 3
    if "image_grid_thw" in names:  # patches, counted by a grid
        merged, depth = lookup(config, "spatial_merge_size") or 1, lookup(config, "temporal_patch_size") or 1
        grid, patch = (1, 2 * merged, 3 * merged), lookup(config, "patch_size") or 14
        grids = torch.tensor([grid] * batch)
        yield drawn(batch * grid[1] * grid[2], channels * depth * patch * patch) | {"image_grid_thw": grids}
    height, width = image_shape(config)
    pins = lookup(config, "image_grid_pinpoints")
    if "image_sizes" in names and pins:  # the whole image, and a grid of tiles
        rows, columns = (int(n) for n in pins[0])
        tiles = 1 + (rows // height) * (columns // width)
        yield drawn(batch, tiles, channels, height, width) | {"image_sizes": torch.tensor([[rows, columns]] * batch)}
    if "aspect_ratio_ids" in names:  # tiles that a mask counts
        tiles = lookup(config, "max_num_tiles") or 1
        ones = {"aspect_ratio_ids": (batch, 1), "aspect_ratio_mask": (batch, 1, tiles)}
        yield drawn(batch, 1, tiles, channels, height, width) | {
            k: torch.ones(s, dtype=torch.int64) for k, s in ones.items()
        }
    yield drawn(batch, channels, height, width)
    yield drawn(batch, 1, channels, height, width)


def image_shape(config: Any) -> tuple[int, int]:
    """Height and width of the images that a model takes; 64 where it takes any that its strides divide."""
    size = lookup(config, "image_size")
    height, width = size if isinstance(size, (list, tuple)) else (size or 64, size or 64)
    return int(height), int(width)


def _count(model: nn.Module, kind: str, form: Mapping[str, torch.Tensor]) -> int:
    """Rows of features that the model makes of these images or sounds, all together; 0 if it takes none like them."""
    features = getattr(model, f"get_{kind}_features", None)
    lengths = next((getattr(m, _LENGTHS) for m in model.modules() if hasattr(m, _LENGTHS)), None)
    if features is None and lengths is not None and "feature_attention_mask" in form:
        found = lengths(form["feature_attention_mask"].sum(-1))
        return int((found[-1] if isinstance(found, tuple) else found).sum())
    if features is None:
        return 0
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    taken = inspect.signature(features).parameters
    real = {name: value for name, value in form.items() if name in taken}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = {name: mode.from_tensor(value.to(device)) for name, value in real.items()}
    try:
        with evaluating(model), mode, Known([(fake[name], real[name]) for name in real]), torch.no_grad():
            made = features(**fake)
    except Exception:  # noqa: BLE001  # images of another shape than the model takes
        return 0
    made = getattr(made, "pooler_output", made)
    rows = [leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor) and leaf.ndim]
    return sum(leaf.numel() // leaf.shape[-1] for leaf in rows)


_LENGTHS = "_get_feat_extract_output_lengths"
