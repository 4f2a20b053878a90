"""Which operators write into memory, and who else sees what they write.

A graph names values, and a write into memory that two names share changes both. The values of an exported graph are
fake tensors, whose storages are as real as those of the model: which names share memory is read from them, never from
what an operator is called.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import fx

from otfuse.program.whereabouts import where

if TYPE_CHECKING:
    from collections.abc import Iterator

_STATISTICS: Final = ("aten::batch_norm", "aten::instance_norm", "aten::native_batch_norm")  # no schema says it


def written(node: fx.Node) -> list[fx.Node]:
    """The values that an operator writes into."""
    schema = _schema(node)
    if node.op != "call_function" or node.target is operator.getitem:
        return []
    if schema is None:  # a region or a branch: whatever it is given, if anything is written inside
        inside = [step for graph in _regions(node) for step in graph.nodes]
        return [a for a in node.all_input_nodes if a.op != "get_attr"] if any(map(written, inside)) else []
    if schema.name in _STATISTICS:
        return _nodes(node.args[3:5]) if node.args[5] else []
    return _told(node, written=True)


def clashes(graph: fx.Graph) -> Iterator[tuple[str, bool]]:
    """Writes after which the memory is read under another name than what the operator gives.

    Each as a clause for people, and whether PyTorch's schemas tell of it: then functionalization makes it plain.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    holders: dict[int, list[fx.Node]] = {}
    storages: dict[fx.Node, set[int]] = {}
    first: dict[fx.Node, fx.Node] = {}  # the value whose memory a view is told to be
    for node in graph.nodes:
        storages[node] = _storages(node, storages)
        for storage in storages[node]:
            holders.setdefault(storage, []).append(node)
        bases = _bases(node)
        first[node] = first[bases[0]] if bases else node
    for node in graph.nodes:
        for target in written(node):
            seen = {other for storage in storages[target] for other in holders[storage] if order[other] < order[node]}
            for other in sorted(seen, key=order.__getitem__):
                if any(order[user] > order[node] and "_assert" not in str(user.target) for user in other.users):
                    clause = f"it writes into what {_name(target)} gives ({_name(node)} at {where(node)}), and reads it"
                    clause += f" again as what {_name(other)} gives"
                    told = _schema(node) is not None and target in _told(node, written=True)
                    yield clause, told and first[other] is first[target]


def _storages(node: fx.Node, known: dict[fx.Node, set[int]]) -> set[int]:
    held = node.meta.get("val")
    found = {
        item.untyped_storage()._cdata  # noqa: SLF001  # storages have no public identity on fake tensors
        for item in (held if isinstance(held, (list, tuple)) else [held])
        if isinstance(item, torch.Tensor)
    }
    if torch.Tag.maybe_aliasing_or_mutating in getattr(node.target, "tags", ()):  # dropout in evaluation is its operand
        found = found.union(*(known[argument] for argument in node.all_input_nodes))
    return found


def _bases(node: fx.Node) -> list[fx.Node]:
    """The values of which PyTorch's schema says that the result may be a view."""
    if node.target is operator.getitem:
        return node.all_input_nodes
    schema = _schema(node)
    if schema is None or all(result.alias_info is None for result in schema.returns):
        return []
    return _told(node)


def _told(node: fx.Node, *, written: bool = False) -> list[fx.Node]:
    """The arguments of which the schema says that the results are their memory, or that they are written into."""
    found = list[fx.Node]()
    for i, argument in enumerate(_schema(node).arguments):
        told = argument.alias_info
        if told is not None and (told.is_write or not written):
            found += _nodes(node.args[i] if i < len(node.args) else node.kwargs.get(argument.name))
    return found


def _schema(node: fx.Node) -> Any:
    return getattr(node.target, "_schema", None)


def _nodes(given: Any) -> list[fx.Node]:
    found = list[fx.Node]()
    fx.node.map_arg(given, found.append)
    return found


def _regions(node: fx.Node) -> Iterator[fx.Graph]:
    for argument in node.all_input_nodes:
        held = getattr(node.graph.owning_module, str(argument.target), None) if argument.op == "get_attr" else None
        if isinstance(held, fx.GraphModule):
            yield held.graph


def _name(node: fx.Node) -> str:
    while node.target is operator.getitem:
        node = node.args[0]  # type: ignore[assignment]
    schema = _schema(node)
    return str(node.target if schema is None else schema.name).removeprefix("aten::")
