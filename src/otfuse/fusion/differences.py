"""In what a source computes otherwise than the anchor, whose code the result runs."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otfuse.errors import MatchError
from otfuse.flow.rules.operators import operator_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from otfuse.core.graph import FlowNode
    from otfuse.measure.probe import Side

# Keys that say nothing of what a trained model computes from its inputs: parts of names, then whole names.
_SILENT = re.compile(
    r".*(?:dropout|pdrop|layerdrop|drop_path|initializer|init_std|jitter_noise|_loss|dtype|attn_implementation|cache|version).*"
    r"|_.*|architectures|model_type|id2label|label2id|num_labels|problem_type|finetuning_task|task_specific_params|auto_map"
    r"|torchscript|return_dict|output_(?:attentions|hidden_states|scores|router_logits|past)|gradient_checkpointing|pretraining_tp|tokenizer_class|processor_class|chunk_size_feed_forward"
    r"|mask_(?:time|feature)_\w+|apply_spec_augment|use_bfloat16|transformers_weights|quantization_config"
)
_DERIVED = re.compile(r".*(?:head|group|kv|ratio|expan).*")  # shapes tell these as a part or a multiple of a width
_MOST = 8  # differences that are told one by one
_LONG = 40  # characters of a value


@dataclass(frozen=True, slots=True)
class Described:
    """A model as its folder tells it, without its weights.

    ``kind`` is its class, ``config`` what config.json holds (as its config class completes it, where there is one),
    ``shapes`` those of the stored tensors by name: whole numbers that they tell are sizes.
    """

    name: str
    kind: str | None
    config: Mapping[str, Any]
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)


def described(model: nn.Module, name: str) -> Described:
    """A module in these words."""
    config: Any = getattr(model, "config", None)
    settings = (config.to_dict() if hasattr(config, "to_dict") else {}) | getattr(model, "layer_settings", {})
    return Described(name, type(model).__name__, settings, {n: tuple(t.shape) for n, t in model.state_dict().items()})


def require_same_functions(anchor: Side, source: Side, names: tuple[str, str]) -> None:
    """MatchError if units pass another activation function in the source than in the anchor."""
    for ours, theirs in zip(anchor.graph.nodes, source.graph.nodes, strict=True):
        called, other = _called(anchor, ours), _called(source, theirs)
        if ours.kind == "activation" and called != other and None not in (called, other):
            raise MatchError(
                f"{names[1]} cannot be fused into {names[0]}: at {ours.name or ours.where} the anchor computes {called} and "
                f"the source {other}; units behind different functions do not correspond, give models of the same options"
            )


def differences(models: Sequence[Described], *, classes: bool = True) -> list[str]:
    """Notes on sources whose class or settings are not the anchor's (the first).

    MatchError if their classes have other names, unless the recipe sets the classifier aside (``classes`` False). Sizes
    that the shapes of tensors tell are not repeated; a setting that one side lacks counts as off.
    """
    anchor, notes = models[0], []
    for source in models[1:]:
        if classes:
            _require_same_classes(anchor, source)
        other = source.kind != anchor.kind and None not in (source.kind, anchor.kind)
        told = [f"class {source.kind} ({anchor.kind})"] if other else []
        sizes = _sizes(anchor.shapes, source.shapes)
        odd = [f"{key} {_shown(b)} ({_shown(a)})" for key, a, b in _odd("", anchor.config, source.config, sizes)]
        told += odd[:_MOST]
        if told:
            more = f" and {len(odd) - _MOST} more" if len(odd) > _MOST else ""
            notes.append(
                f"{source.name}: differs from the anchor, whose code the result runs, in {', '.join(told)}{more}"
            )
    return notes


def _called(side: Side, node: FlowNode) -> str | None:
    """The operator that an activation ends with."""
    if node.observation is None:
        return None
    return next((operator_name(n) for n in side.program.graph.nodes if n.name == node.observation.value), None)


def _odd(path: str, ours: Any, theirs: Any, sizes: set[tuple[int, int]]) -> Iterator[tuple[str, Any, Any]]:
    """Settings that differ, by dotted name: the anchor's value and the source's."""
    leaf = path.rpartition(".")[2]
    if ours == theirs or (path and _SILENT.fullmatch(leaf)):
        return
    if _is_off(ours) and _is_off(theirs):  # one says no, the other nothing
        return
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in dict.fromkeys([*ours, *theirs]):
            yield from _odd(f"{path}.{key}".strip("."), ours.get(key), theirs.get(key), sizes)
    elif isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        if len(ours) != len(theirs) and (len(ours), len(theirs)) not in sizes:
            yield path, ours, theirs
            return
        places = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if any(_odd("", a, b, sizes))]
        if places:
            first = places[0]
            yield from _odd(f"{path}[{first}]", ours[first], theirs[first], sizes)
    elif not _is_size(leaf, ours, theirs, sizes):
        yield path, ours, theirs


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ({}, [], ())


def _is_size(leaf: str, ours: Any, theirs: Any, sizes: set[tuple[int, int]]) -> bool:
    """Whether two numbers are what shapes tell already."""
    if not all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in (ours, theirs)):
        return False
    whole = isinstance(ours, int) and isinstance(theirs, int)
    derived = _DERIVED.fullmatch(leaf) and any(a * theirs == s * ours for a, s in sizes)
    return bool(derived or (whole and (ours, theirs) in sizes))


def _sizes(ours: Mapping[str, Sequence[int]], theirs: Mapping[str, Sequence[int]]) -> set[tuple[int, int]]:
    """Pairs of lengths, anchor's and source's, of axes of the same tensor and of lists of modules, where they differ."""
    pairs = {
        (a, s)
        for name, shape in ours.items()
        if name in theirs
        for a, s in zip(shape, theirs[name], strict=False)
        if a != s
    }
    counts = [_counts(shapes) for shapes in (ours, theirs)]
    return pairs | {(n, counts[1][k]) for k, n in counts[0].items() if k in counts[1] and counts[1][k] != n}


def _counts(names: Mapping[str, Any]) -> dict[str, int]:
    """Of every list of modules, by its name without numbers, how many it has."""
    found = defaultdict[str, set[str]](set)
    for name in names:
        for number in re.finditer(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", name):
            found[re.sub(r"\d+", "#", name[: number.start()])].add(number[0])
    return {place: len(numbers) for place, numbers in found.items()}


def _shown(value: Any) -> str:
    text = "not set" if value is None else repr(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."


def _require_same_classes(anchor: Described, source: Described) -> None:
    ours, theirs = (_classes(m.config) for m in (anchor, source))
    if ours and theirs and ours != theirs and len(ours) == len(theirs):
        at = next(i for i, (a, s) in enumerate(zip(ours, theirs, strict=True)) if a != s)
        raise MatchError(
            f"{source.name} cannot be fused into {anchor.name}: class {at} is {ours[at]!r} in the anchor and {theirs[at]!r} in the "
            "source (id2label); bring their classes into one order, or correct the configs"
        )


def _classes(config: Mapping[str, Any]) -> list[str]:
    """Names of the classes, where somebody has given them names."""
    named = config.get("id2label")
    if not isinstance(named, dict) or not all(str(key).isdigit() for key in named):
        return []
    classes = [str(named[key]) for key in sorted(named, key=int)]
    return [] if all(name == f"LABEL_{i}" for i, name in enumerate(classes)) else classes
