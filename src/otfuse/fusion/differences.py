"""In what a source computes otherwise than the anchor, whose code the result runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otfuse.errors import MatchError
from otfuse.flow.rules.operators import operator_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from otfuse.core.graph import FlowNode
    from otfuse.measure.probe import Side

_SILENT = (
    "dropout",
    "initializer",
    "dtype",
    "_name",
    "_attn",
    "version",
    "architectures",
    "label",
    "drop_path",
    "cache",
)
_MOST = 8  # differences that are told one by one


def require_same_functions(anchor: Side, source: Side, names: tuple[str, str]) -> None:
    """MatchError if units pass another activation function in the source than in the anchor."""
    for ours, theirs in zip(anchor.graph.nodes, source.graph.nodes, strict=True):
        called, other = _called(anchor, ours), _called(source, theirs)
        if ours.kind == "activation" and called != other and None not in (called, other):
            raise MatchError(
                f"{names[1]} cannot be fused into {names[0]}: at {ours.name or ours.where} the anchor computes {called} and "
                f"the source {other}; units behind different functions do not correspond, give models of the same options"
            )


def differences(models: Sequence[nn.Module], names: Sequence[str], *, classifier: str = "fuse") -> list[str]:
    """Notes on sources whose class or settings are not the anchor's. MatchError if their classes have other names."""
    notes = []
    for model, name in zip(models[1:], names[1:], strict=True):
        if classifier == "fuse":
            _require_same_classes(models[0], model, (names[0], name))
        told = (
            [f"class {type(model).__name__} ({type(models[0]).__name__})"] if type(model) is not type(models[0]) else []
        )
        ours, theirs = (dict(_settings(m)) for m in (models[0], model))
        odd = [key for key in ours if key in theirs and ours[key] != theirs[key]]
        told += [f"{key} {theirs[key]!r} ({ours[key]!r})" for key in odd[:_MOST]]
        if told:
            more = f" and {len(odd) - _MOST} more" if len(odd) > _MOST else ""
            notes.append(f"{name}: differs from the anchor, whose code the result runs, in {', '.join(told)}{more}")
    return notes


def _called(side: Side, node: FlowNode) -> str | None:
    """The operator that an activation ends with."""
    if node.observation is None:
        return None
    return next((operator_name(n) for n in side.program.graph.nodes if n.name == node.observation.value), None)


def _settings(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a config says beside sizes: functions, constants and switches, by dotted name."""
    config: Any = getattr(model, "config", None)
    todo: list[tuple[str, Any]] = [("", config.to_dict())] if hasattr(config, "to_dict") else []
    while todo:
        path, value = todo.pop(0)
        if isinstance(value, dict):
            todo += [(f"{path}.{key}".strip("."), item) for key, item in value.items()]
        elif isinstance(value, (str, float, bool)) and not any(word in path for word in _SILENT):
            yield path, value


def _require_same_classes(anchor: nn.Module, source: nn.Module, names: tuple[str, str]) -> None:
    ours, theirs = (_classes(m) for m in (anchor, source))
    if ours and theirs and ours != theirs and len(ours) == len(theirs):
        at = next(i for i, (a, s) in enumerate(zip(ours, theirs, strict=True)) if a != s)
        raise MatchError(
            f"{names[1]} cannot be fused into {names[0]}: class {at} is {ours[at]!r} in the anchor and {theirs[at]!r} in the "
            "source (id2label); bring their classes into one order, or correct the configs"
        )


def _classes(model: nn.Module) -> list[str]:
    """Names of the classes, where somebody has given them names."""
    named = getattr(getattr(model, "config", None), "id2label", None) or {}
    classes = [str(named[key]) for key in sorted(named, key=int)]
    return [] if all(name == f"LABEL_{i}" for i, name in enumerate(classes)) else classes
