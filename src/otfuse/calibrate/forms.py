"""How an operator is a matrix product: rows of what it reads, rows of what it gives, and its weight as a matrix.

One function per operator family; each says where its operands are and how they are laid out. Rows keep the order of the
examples. A weight is seen through views alone, so that writing into its matrix writes into the stored tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.nn import functional

from otfuse.flow.rules.operators import argument, einsum_letters, operator_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    View = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """``outputs(y) = inputs(x) @ matrix(w).mT + offset(b)``.

    ``inputs`` gives ``[*lead, groups, in]`` and ``outputs`` ``[*lead, groups, out]``, where ``lead`` are the places (the
    examples first among them, as in the value); ``matrix`` ``[groups, out, in]`` and ``offset`` ``[groups, out]`` are views.
    ``ends`` is None, or the value whose entry ``g`` tells how many rows belong to the groups up to ``g`` (rows of experts):
    then ``inputs`` and ``outputs`` give one group, and every row has its own matrix. What multiplies is ``matrix(w) + shift``;
    ``adds`` is None, or the operator behind the product that adds the bias, which then gives ``y``.
    """

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    inputs: View
    outputs: View
    matrix: View
    offset: View
    ends: fx.Node | None = None
    shift: float = 0.0
    adds: fx.Node | None = None


def form_of(node: fx.Node, is_stored: Callable[[Any], bool]) -> Form | None:
    """How ``node`` multiplies what it reads by a stored tensor (or a view of one); None if it does not, or not plainly."""
    make = _FORMS.get(operator_name(node))
    return make(node, is_stored) if make is not None else None


def _linear(node: fx.Node, is_stored: Callable[[Any], bool]) -> Form | None:
    x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    if not is_stored(weight) or is_stored(x):
        return None
    return _form(x, weight, bias, _one_group, _one_group, lambda w: w[None])


def _matmul(node: fx.Node, is_stored: Callable[[Any], bool]) -> Form | None:
    plain = argument(node, 3, "beta", 1) == 1 and argument(node, 4, "alpha", 1) == 1
    bias, x, weight = node.args if len(node.args) == 3 else (None, *node.args)
    if not is_stored(weight) or is_stored(x) or not plain:
        return None
    left, right = _rank(x), _rank(weight)
    if right == 2:
        return _form(x, weight, bias, _one_group, _one_group, lambda w: w.mT[None])
    if right == 3 and left >= 3:  # one matrix per group: [..., groups, rows, in]
        middle: View = lambda v: v.movedim(-3, -2)  # noqa: E731
        offset: View = lambda b: b.view(b.shape[-3], b.shape[-1]) if b.ndim == 3 else b  # noqa: E731
        return _form(x, weight, bias, middle, middle, lambda w: w.mT, offset)
    return None


def _convolution(node: fx.Node, is_stored: Callable[[Any], bool]) -> Form | None:
    x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    if not is_stored(weight) or is_stored(x) or _rank(x) != _rank(weight):
        return None
    rank, groups = _rank(weight) - 2, int(argument(node, 6, "groups", 1))
    size = tuple(int(n) for n in _shape(weight)[2:])
    stride, pad, dilation = (_each(argument(node, at, name, default), rank) for at, name, default in _WINDOW)
    if "same" in pad:
        pad = tuple(d * (k - 1) for d, k in zip(dilation, size, strict=True))
        pads = [(p // 2, p - p // 2) for p in pad]
    else:
        pads = [(0, 0) if p == "valid" else (int(p), int(p)) for p in pad]

    def windows(v: torch.Tensor) -> torch.Tensor:
        v = functional.pad(v, [n for pair in pads[::-1] for n in pair])
        for d in range(rank):
            v = v.unfold(2 + d, dilation[d] * (size[d] - 1) + 1, stride[d])
        within: Any = (..., *(slice(None, None, d) for d in dilation))
        v = v[within]
        v = v.movedim(1, 1 + rank)  # [example, *places, channel, *kernel]
        return v.reshape(*v.shape[: 1 + rank], groups, -1)

    def channels(v: torch.Tensor) -> torch.Tensor:
        split: torch.Tensor = v.movedim(1, -1).unflatten(-1, (groups, -1))
        return split

    return _form(
        x,
        weight,
        bias,
        windows,
        channels,
        lambda w: w.view(groups, w.shape[0] // groups, -1),
        lambda b: b.view(groups, -1),
    )


_WINDOW = ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))


def _einsum(node: fx.Node, is_stored: Callable[[Any], bool]) -> Form | None:
    operands: Any = node.args[1]
    if len(operands) != 2 or sum(map(is_stored, operands)) != 1:
        return None
    letters, output = einsum_letters(str(node.args[0]), [_rank(a) for a in operands])
    at = 0 if is_stored(operands[0]) else 1
    w, x = letters[at], letters[1 - at]
    if any(len(set(part)) < len(part) for part in (w, x, output)) or not set(w) <= set(x) | set(output):
        return None
    groups, inner = [c for c in w if c in x and c in output], [c for c in w if c in x and c not in output]
    outer, lead = [c for c in w if c not in x], [c for c in x if c not in w]
    if not set(lead) <= set(output) or set(output) != {*groups, *outer, *lead}:
        return None

    def ordered(part: str, *parts: Sequence[str]) -> View:
        order = [part.index(c) for letters in parts for c in letters]
        starts = [len(letters) for letters in parts]

        def view(v: torch.Tensor) -> torch.Tensor:
            v = v.permute(order)
            shapes, at = list[tuple[int, ...]](), 0
            for count in starts:
                shapes.append(tuple(v.shape[at : at + count]))
                at += count
            kept = shapes[0] if len(shapes) == 3 and parts[0] is lead else (prod(shapes[0]),)
            return v.reshape(*kept, *(prod(shape) for shape in shapes[1:]))

        return view

    return _form(
        operands[1 - at],
        operands[at],
        None,
        ordered(x, lead, groups, inner),
        ordered(output, lead, groups, outer),
        ordered(w, groups, outer, inner),
    )


def _experts(node: fx.Node, is_stored: Callable[[Any], bool]) -> Form | None:
    """Rows sorted by expert, ``[rows, in] x [experts, in, out]``."""
    x: Any = node.args[0]
    weight: Any = node.args[1]
    ends = argument(node, 2, "offs")
    if not is_stored(weight) or is_stored(x) or _rank(weight) != 3 or argument(node, 3, "bias") is not None:
        return None
    return Form(x, weight, None, _one_group, _one_group, lambda w: w.mT, _one_row, ends)


_FORMS: dict[str, Callable[[fx.Node, Callable[[Any], bool]], Form | None]] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "addmm", "baddbmm"), _matmul),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    "einsum": _einsum,
    **dict.fromkeys(("_grouped_mm", "transformers::grouped_mm_fallback"), _experts),
}


def _one_group(v: torch.Tensor) -> torch.Tensor:
    return v[..., None, :]


def _one_row(v: torch.Tensor) -> torch.Tensor:
    return v[None]


def _form(
    x: Any, weight: Any, bias: Any, inputs: View, outputs: View, matrix: View, offset: View | None = None
) -> Form:
    return Form(x, weight, bias, inputs, outputs, matrix, offset or _one_row)


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _rank(node: Any) -> int:
    return len(_shape(node))


def _each(given: Any, rank: int) -> tuple[Any, ...]:
    return tuple(given) * (rank if len(given) == 1 else 1) if isinstance(given, (list, tuple)) else (given,) * rank
