"""From the names in a checkpoint's files to the names in its model, and back: as transformers itself renames and converts.

Most names are the same. Some files leave a prefix out, or have an older name, or one more in front that a wrapper put
there; a few store in several tensors what the model holds in one (experts), or the reverse. This is the only file that
knows how transformers says so (its ``core_model_loading``).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

_WRAPPERS: Final = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")  # anywhere
_OUTER: Final = ("module.", "base_model.model.", "model.", "state_dict.")  # in front


@dataclass(slots=True, eq=False)
class Group:
    """Stored tensors that are converted together: (pattern, key) in their order, and the tensors of the model they become."""

    converter: Any
    keys: list[tuple[str, str]] = field(default_factory=list)
    names: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Keys:
    """Where every stored tensor of a model lies.

    ``plain``: model name -> key; ``groups``: model name -> the group it comes from; ``unexpected``: keys that the model
    has no place for; ``missing``: names that no file holds; ``bare``: keys in which a wrapper put something -> without it.
    """

    plain: dict[str, str] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    bare: dict[str, str] = field(default_factory=dict)


def resolve(model: nn.Module, keys: Iterable[str]) -> Keys:
    """Which stored tensor is which of ``model``, whose values are not looked at.

    Sets on the model by which conversions its files were read, so that :func:`reverted` can undo them.
    """
    state, found, used = model.state_dict(), Keys(), list[Any]()
    rename = _renamer(model, state, used)
    for key in sorted(keys, key=natural):
        name, pattern, converter = rename(key)
        if name not in state and (bare := unwrapped(key, lambda k: rename(k)[0] in state)) is not None:
            found.bare[key] = bare
            name, pattern, converter = rename(bare)
        if name not in state:
            found.unexpected.append(key)
        elif converter is None:
            found.plain[name] = key
        else:
            group = found.groups.setdefault(name, Group(copy.deepcopy(converter)))
            group.keys.append((pattern, key))
    for first, group in list(found.groups.items()):
        made = [first.replace(group.converter.target_patterns[0], t) for t in group.converter.target_patterns]
        group.names = tuple(name for name in dict.fromkeys([first, *made]) if name in state)
        found.groups |= dict.fromkeys(group.names, group)
    found.missing = [name for name in state if name not in found.plain and name not in found.groups]
    if hasattr(model, "config"):
        model._weight_conversions = [c for c in used if c.was_used()]  # type: ignore[assignment]  # noqa: SLF001  # what from_pretrained leaves there
    return found


def converted(group: Group, model: nn.Module, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the model that a group of stored ones becomes."""
    converter = copy.deepcopy(group.converter)
    for pattern, key in group.keys:
        converter.add_tensor(group.names[0], key, pattern, read(key))
    made = converter.convert(group.names[0], model=model, config=getattr(model, "config", None))
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def reverted(group: Group, model: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the files hold in the place of these tensors of the model, by key."""
    from transformers.core_model_loading import revert_weight_conversion

    keys = [key for _, key in group.keys]
    return {
        next((key for key in keys if f".{key}".endswith(f".{name}") or f".{name}".endswith(f".{key}")), name): tensor
        for name, tensor in revert_weight_conversion(model, dict(tensors)).items()
    }


def looks_wrapped(key: str) -> bool:
    """Whether a wrapper may have put something into the key, as far as the key alone tells."""
    doubled = "model.model."  # what some wrapper calls the model, then what the model calls its own base
    return key.startswith((*(p for p in _OUTER if p != "model."), doubled)) or not set(_WRAPPERS).isdisjoint(
        key.split(".")
    )


def unwrapped(key: str, fits: Callable[[str], bool]) -> str | None:
    """The key without what wrappers (torch.compile, data parallel, adapters) put into it, if then it fits; else None."""
    bare = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
    while bare != key or bare.startswith(_OUTER):
        if fits(bare):
            return bare
        outer = next((p for p in _OUTER if bare.startswith(p)), None)
        if outer is None:
            return None
        key = bare = bare.removeprefix(outer)
        if fits(bare):
            return bare
    return None


def _renamer(model: Any, state: Mapping[str, Any], used: list[Any]) -> Callable[[str], tuple[str, str, Any]]:
    """``key -> (name, pattern, converter or None)``, as ``from_pretrained`` finds them."""
    if not hasattr(model, "base_model_prefix"):
        return lambda key: (key, key, None)
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    used += mapping
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix, held = model.base_model_prefix, dict(state)

    def rename(key: str) -> tuple[str, str, Any]:
        name, pattern = rename_source_key(key, renamings, converters, prefix, held)
        if name not in state and key in state:
            name, pattern = rename_source_key(key, [], [], base_model_prefix=prefix, meta_state_dict=held)
        return name, pattern or key, by_pattern[pattern] if pattern is not None else None

    return rename


def natural(key: str) -> Any:
    """Numbers by their value, so that expert 10 comes after expert 9."""
    from transformers.core_model_loading import dot_natural_key

    return dot_natural_key(key)
