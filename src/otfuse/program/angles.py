"""Stored angles: what nobody trained and the program only multiplies by at positions, as rotary embeddings do.

Frequencies of which sines and cosines are taken, or a table of those. They are the same in every model of a class, saved
or not, and averaging them has no meaning. So they are constants like those that are not saved, and do not move with the
units that they turn (docs/decisions.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from otfuse.program.whereabouts import short_name

if TYPE_CHECKING:
    from collections.abc import Iterable

_PERIODIC, _PRODUCTS = ("sin", "cos", "polar"), ("mul", "mul_")
_LOOKUPS = ("embedding", "index", "index_select", "gather", "slice")  # of a table by position


def only_angles(places: Iterable[fx.Node], moving: set[fx.Node]) -> set[fx.Node]:
    """Those of ``places`` that reach the rest of the program only as factors that are sines, cosines or rows of a table.

    ``places`` are placeholders that are not trained; ``moving`` are those whose values are not positions: parameters,
    buffers, floating inputs.
    """
    return {place for place in places if place.users and _turns_only(place, moving - {place})}


def _turns_only(place: fx.Node, moving: set[fx.Node]) -> bool:
    turning = (*_PERIODIC, *_LOOKUPS) if len(place.meta["val"].shape) > 1 else _PERIODIC
    todo, seen = [(user, False) for user in place.users], set[tuple[fx.Node, bool]]()
    while todo:
        node, turned = step = todo.pop()
        if step in seen:
            continue
        seen.add(step)
        if node.op == "output" or (_depends(node, moving) and not (turned and short_name(node) in _PRODUCTS)):
            return False
        if not _depends(node, moving):
            todo += [(user, turned or short_name(node) in turning) for user in node.users]
    return True


def _depends(node: fx.Node, on: set[fx.Node]) -> bool:
    todo, seen = [node], set[fx.Node]()
    while todo:
        step = todo.pop()
        if step in on:
            return True
        if step not in seen:
            seen.add(step)
            todo += step.all_input_nodes
    return False
