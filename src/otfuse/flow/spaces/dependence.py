"""Which units may move differently in every copy of something else (wreath products; docs/method.md, 3.3).

The units of a head may be permuted differently in every head: they *depend* on the head. This is not built into
unification but computed afterwards from everything that was recorded.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from otfuse.flow.algebra.value import values_in
from otfuse.flow.spaces.choices import LOST, Choices

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from otfuse.flow.algebra.axes import Algebra, Atom, Axis
    from otfuse.flow.rules.facts import Facts


def dependencies(facts: Facts) -> dict[Atom, list[Atom]]:
    """For every leaf of a stored tensor: the leaves on whose index its permutation may depend, outermost first.

    It is the intersection, over all recorded tensors that hold the leaf, of the other leaves indexed at the same
    place; then, for every contraction over the leaf, of what is contracted with it and what is aligned on both sides
    (attention across heads contracts units of head i with units of head j: their permutation must be common).
    """
    algebra, known = facts.algebra, dict[int, set[int]]()
    choices = Choices(algebra, facts.choices)
    for value in facts.records:
        for leaf, context in _contexts(algebra, choices, value.axes):
            known[leaf] = known[leaf] & context if leaf in known else context
    for inner, aligned, kept in facts.contractions:
        leaves = set(algebra.leaves(inner))
        beside = {leaf for axis in aligned for leaf in algebra.leaves(axis)}
        allowed = choices.among(leaves | beside, [atom for axis in aligned for atom in algebra.flat(axis)])
        for leaf in leaves:
            known[leaf] = known.get(leaf, allowed) & allowed
        told = leaves | choices.moved(leaves)
        for leaf in {leaf for axis in kept for leaf in algebra.leaves(axis)} - leaves:
            if leaf in known:  # what is mixed beside a unit cannot tell how the unit moved
                known[leaf] = known[leaf] - told
    for leaves, chosen in choices.forgotten:
        for leaf in leaves & known.keys():
            known[leaf] = known[leaf] - chosen
    if choices:
        _keep_to_one_choice(facts, choices, known)
    known = {leaf: {a for a in context if not algebra.cell(a).hard & LOST} for leaf, context in known.items()}
    order = _order(facts)
    return {leaf: _outer(leaf, known, order) for leaf in order}


def _keep_to_one_choice(facts: Facts, choices: Choices, known: dict[int, set[int]]) -> None:
    """What an operator reads and what it gives may know an expert by one choice only: it may have moved the units."""
    algebra = facts.algebra
    for node, given in facts.env.items():
        made: dict[tuple[int, int], set[Any]] = {}
        for value in (*values_in(given), *(v for a in node.all_input_nodes for v in values_in(facts.env.get(a)))):
            told = choices.told(atom for axis in value.axes for atom in algebra.flat(axis))
            for leaf in {leaf for axis in value.axes for leaf in algebra.leaves(axis)} if told else ():
                for chosen, origins in told.items():
                    made.setdefault((leaf, chosen), set()).update(origins)
        for (leaf, chosen), origins in made.items():
            if len(origins) > 1 and leaf in known:
                known[leaf] = known[leaf] - {chosen}


def _order(facts: Facts) -> dict[int, int]:
    """Leaves of stored tensors in order of first appearance: outer factors come first."""
    order: dict[int, int] = {}
    for value in facts.stored.values():
        for axis in value.axes:
            for leaf in facts.algebra.leaves(axis):
                order.setdefault(leaf, len(order))
    return order


def _outer(leaf: int, known: dict[int, set[int]], order: dict[int, int]) -> list[int]:
    """What the leaf depends on; of two that depend on each other the outer one does not."""
    found = [
        other
        for other in known.get(leaf, ())
        if other in order and other != leaf and not (leaf in known.get(other, ()) and order[other] > order[leaf])
    ]
    return sorted(found, key=order.__getitem__)


def _contexts(algebra: Algebra, choices: Choices, axes: Sequence[Axis]) -> Iterator[tuple[int, set[int]]]:
    """Every leaf with the leaves whose index is known wherever it is indexed, once per occurrence.

    A leaf that stands on two axes (an outer product) cannot serve as a context.
    """
    outer = [a for axis in axes for a in algebra.flat(axis)]
    base = choices.among({a for a, times in Counter(outer).items() if times == 1 and not algebra.is_sum(a)}, outer)
    for axis in axes:
        yield from _walk(algebra, axis, base)


def _walk(algebra: Algebra, axis: Axis, context: set[int]) -> Iterator[tuple[int, set[int]]]:
    flat = algebra.flat(axis)
    times = Counter(flat)
    here = context | {a for a in flat if not algebra.is_sum(a) and times[a] == 1}
    for atom in flat:
        if algebra.is_sum(atom):
            for part in algebra.parts(atom):
                yield from _walk(algebra, part, here)
        else:
            yield atom, here - {atom}
