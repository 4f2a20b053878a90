"""Checkpoints in the words of :mod:`otfuse.fusion.differences`: from their folders alone, no model is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otfuse.fusion.differences import Described
from otfuse.io.quiet import quiet
from otfuse.io.sentence import layer_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otfuse.io.checkpoint import Checkpoint


def describe(checkpoints: Sequence[Checkpoint]) -> list[Described]:
    """Class, settings and shapes of each; settings are completed where the files tell unlike many.

    Libraries of different age write different keys for the same thing, and leave out what has its usual value. Only then
    are the classes of configs needed, which are slow to import.
    """
    configs = [c.config for c in checkpoints]
    if any(_keys(config) != _keys(configs[0]) for config in configs):
        configs = [completed(config) for config in configs]
    configs = [config | layer_settings(c.root or c.folder) for c, config in zip(checkpoints, configs, strict=True)]
    return [
        Described(c.name, c.architecture, config, {name: info.shape for name, info in c.tensors.items()})
        for c, config in zip(checkpoints, configs, strict=True)
    ]


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """The config with every setting that its class has; as it is where the library has no such class."""
    rest = {key: value for key, value in config.items() if key != "model_type"}
    try:
        with quiet():
            from transformers import AutoConfig

            found: dict[str, Any] = AutoConfig.for_model(str(config["model_type"]), **rest).to_dict()
    except Exception:  # noqa: BLE001 - whatever a class says to settings that it does not take
        return config
    return found


def _keys(value: Any) -> Any:
    return {key: _keys(inner) for key, inner in value.items()} if isinstance(value, dict) else None
