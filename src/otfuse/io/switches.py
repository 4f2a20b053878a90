"""Settings that only concern running, and parts of a class that files may leave out: neither stops a fusion.

The result keeps the anchor's own config.json; what is neutral here is only what is loaded, traced and trained.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

# Not `use_cache`: programs are asked for no cache, and the module that Python gets back should keep one.
# What is given out beside predictions, how attention and experts are computed, what is kept between calls or for training.
_RUNNING = re.compile(
    r"output_(?:attentions|hidden_states|scores|router_logits)|(?:use_)?return_dict|return_dict_in_generate|torchscript"
    r"|cache_(?:implementation|config)|compile_config|_?(?:attn|experts)_implementation|_(?:attn|experts)_implementation_\w+"
    r"|_flash_attn_2_enabled|use_kernels|gradient_checkpointing|use_bfloat16|tp_plan|device_map"
)


def neutral(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as plain values, its parts too, without what only concerns running."""
    return {
        key: neutral(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if not _RUNNING.fullmatch(key)
    }


def restored(config: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A config as a neutral model wrote it, with what its ``own`` said of running."""
    result = dict(config)
    for key, value in own.items():
        part = result.get(key)
        if _RUNNING.fullmatch(key):
            result[key] = value
        elif isinstance(part, dict) and isinstance(value, dict):
            result[key] = restored(part, value)
    return result


def loading(kind: Any, config: Mapping[str, Any], folder: Path, stored: Iterable[str]) -> dict[str, Any]:
    """Keywords for ``kind.from_pretrained(folder)`` that keep from it what does not matter here.

    A neutral config where the folder's is not, settings of generation as they come with the library where the folder's
    are refused by it, and no pooling layer where nobody stored one. A config with code of its own is left to that code.
    """
    return _config(kind, config) | _generation(folder) | _parts(kind, stored)


def _config(kind: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    plain = neutral(config)
    if plain == config or config.get("auto_map"):
        return {}
    from transformers import CONFIG_MAPPING

    made = getattr(kind, "config_class", None)
    if made is None and config.get("model_type") in CONFIG_MAPPING:
        made = CONFIG_MAPPING[str(config["model_type"])]
    return {} if made is None else {"config": made.from_dict(plain)}


def _generation(folder: Path) -> dict[str, Any]:
    if not (folder / "generation_config.json").is_file():
        return {}
    from transformers import GenerationConfig

    with contextlib.suppress(Exception):
        GenerationConfig.from_pretrained(folder, local_files_only=True)
        return {}
    return {"generation_config": GenerationConfig()}


def _parts(kind: Any, stored: Iterable[str]) -> dict[str, Any]:
    known = inspect.signature(kind.__init__).parameters
    return (
        {"add_pooling_layer": False} if "add_pooling_layer" in known and not any("pooler." in n for n in stored) else {}
    )
