"""How an operator of the program is read: its name, its arguments, and the dimensions that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx


def operator_name(node: fx.Node) -> str:
    """``linear`` for ``aten.linear.default``; ``library::name`` for operators of other libraries."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return str(getattr(node.target, "__name__", node.target))
    name = str(schema.name).removeprefix("aten::")
    return "view.dtype" if (name, schema.overload_name) == ("view", "dtype") else name  # other numbers, no layout


def argument(node: fx.Node, index: int, name: str = "", default: Any = None) -> Any:
    """An argument by position, else by keyword, else the default."""
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


def dimension_order(name: str, arguments: Sequence[Any], rank: int) -> list[int]:
    """For every dimension of a transposed or permuted result: which dimension of the operand it was."""
    order = list(range(rank))
    if name in ("t", "numpy_T"):
        return order[::-1]
    if name == "mT":
        return [*order[:-2], order[-1], order[-2]]
    if name == "permute":
        return [d % rank for d in arguments[0]]
    first, second = arguments[0], arguments[1]
    if name in ("movedim", "moveaxis"):
        moved = [[int(d) % rank for d in ([given] if isinstance(given, int) else given)] for given in (first, second)]
        order = [d for d in order if d not in moved[0]]
        for at, d in sorted(zip(moved[1], moved[0], strict=True)):
            order.insert(at, d)
        return order
    i, j = first % rank, second % rank
    order[i], order[j] = order[j], order[i]
    return order


def reduced_dimensions(node: fx.Node, rank: int) -> list[int]:
    """The dimensions that a reduction sums over: all of them unless some are named."""
    position = 2 if operator_name(node) in ("norm", "linalg_vector_norm") else 1
    given = argument(node, position, "dim")
    if isinstance(given, bool) or given is None or given == []:
        return list(range(rank))
    return [int(d) % rank for d in ([given] if isinstance(given, int) else given)]


def einsum_letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Signatures with a letter for every dimension: ellipses and an output that is left out are written in full."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    letters = "".join(inputs).replace(".", "")
    more = [n - len(i.replace("...", "")) for i, n in zip(inputs, ranks, strict=True) if "..." in i]
    free = list(map(chr, range(0x100, 0x180)))[: max(more, default=0)]  # letters that no equation can hold
    if not arrow:
        output = "..." * bool(free) + "".join(sorted(c for c in letters if letters.count(c) == 1))
    written = [
        i.replace("...", "".join(free[len(free) - (n - len(i.replace("...", ""))) :]))
        for i, n in zip(inputs, ranks, strict=True)
    ]
    return written, output.replace("...", "".join(free))
