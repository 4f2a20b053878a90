"""Where two values meet in a product, and which stored tensors made them: queries and keys of one attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from otfuse.flow.algebra.value import values_in
from otfuse.flow.rules.operators import operator_name
from otfuse.flow.rules.registry import Family, entry_of

if TYPE_CHECKING:
    from otfuse.flow.rules.facts import Facts

_PRODUCTS = ("matmul", "bmm", "mm", "einsum", "baddbmm")


def meetings(facts: Facts) -> dict[fx.Node, set[str]]:
    """For every product of two derived values: the stored tensors behind both, up to the last contraction."""
    found = {}
    for node in facts.env:
        entry = entry_of(node) if node.op == "call_function" else None
        if entry is None or (entry.family is not Family.ATTENTION and operator_name(node) not in _PRODUCTS):
            continue
        sides = [side for side in node.all_input_nodes[:2] if any(v.derived for v in values_in(facts.env[side]))]
        if len(sides) == 2:
            found[node] = {name for side in sides for name in _behind(facts, side)}
    return found


def _behind(facts: Facts, start: fx.Node) -> set[str]:
    names, todo, seen = set[str](), [start], set[fx.Node]()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        held = next(values_in(facts.env.get(node)), None)
        if held is not None and held.stored and held.tensor is not None:
            names.add(held.tensor)
        entry = entry_of(node) if node.op == "call_function" else None
        stops = entry is not None and entry.family in (Family.CONTRACTION, Family.CONVOLUTION, Family.ATTENTION)
        # what a contraction reads was made before; its weight and bias made what it gives
        todo += [a for a in node.all_input_nodes if not stops or any(v.stored for v in values_in(facts.env.get(a)))]
    return names
