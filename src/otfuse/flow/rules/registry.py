"""The registry of rules: one per operator family, refused when registered twice.

A rule takes an :class:`~otfuse.flow.rules.op.Op` and returns the abstract value of its result (or a list of them). It relates
axes through the algebra; whatever it cannot follow it leaves to the caller by raising ``MisfitError`` or returning
``UNKNOWN``: then everything the operator reads is pinned.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch

from otfuse.flow.rules.operators import operator_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import fx

    from otfuse.flow.rules.op import Op

UNKNOWN: Final = object()


class Family(StrEnum):
    """What the layer-level walk has to know of an operator."""

    KEEP = "keep"  # the same tensor, up to values: dropout, casts, softmax
    POINTWISE = "pointwise"  # element by element, broadcasting
    LAYOUT = "layout"  # moves elements and computes nothing
    CONTRACTION = "contraction"
    CONVOLUTION = "convolution"
    ATTENTION = "attention"
    NORM = "norm"
    LOOKUP = "lookup"
    PLACED = "placed"  # writes rows of one value into another
    CREATION = "creation"
    REDUCTION = "reduction"
    POOL = "pool"
    ORDER = "order"
    NONE = "none"


Rule: TypeAlias = "Callable[[Op], Any]"


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule and its family."""

    apply: Rule
    family: Family


RULES: dict[str, Entry] = {}


def rule(*names: str, family: Family) -> Callable[[Rule], Rule]:
    """Register a rule for operators of these names (without ``aten::`` and overload; others as ``library::name``)."""

    def register(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"operator {name!r} has a rule already; remove one of the two")
            RULES[name] = Entry(function, family)
        return function

    return register


def entry_of(node: fx.Node) -> Entry | None:
    """The rule for a node: by name, else by the tag ``pointwise`` of the operator, else None."""
    load()
    name = operator_name(node)
    if name in RULES:
        return RULES[name]
    if torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return RULES["pointwise"]
    return None


def load() -> None:
    """Import every file of rules, once."""
    if "pointwise" not in RULES:
        package = import_module("otfuse.flow.rules")
        for module in iter_modules(package.__path__):
            import_module(f"otfuse.flow.rules.{module.name}")
