"""The cases of the rules that otfuse has: tiny modules in which one operator decides what is free."""

# mypy: disable-error-code="no-any-return"
# ruff: noqa: SLF001  # operators of PyTorch whose names begin with an underscore
# Calls of nn.Module and of torch.ops have no type; the lambdas below are examples of user code, which does not cast.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from otfuse.testing.record import normal, tokens
from otfuse.testing.rule_duties import beside_heads, chosen, mixed, pins, ties
from otfuse.testing.rule_probes import (
    along,
    between,
    constant,
    dense,
    elementwise,
    half,
    numbered,
    parameter,
    picture,
    plain,
    through,
    turned,
    two_heads,
    two_parts,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otfuse.testing.rule_probes import Forward, Layers
    from otfuse.testing.rules import RuleCase

    Steps = dict[str, Callable[[Tensor], Tensor]]


def _attend(m: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(x).view(2, 4, 2, -1).transpose(1, 2) for layer in (m.q, m.k, m.v))
    return m.leave(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _experts(m: Any, x: Tensor) -> Tensor:
    """Rows sorted by the expert that the router chose, through two matrices per expert, and back."""
    from transformers.integrations import moe  # noqa: F401  # registers the operator

    multiply = torch.ops.transformers.grouped_mm_fallback
    weight, chosen = m.router(x).softmax(-1).topk(1, -1)
    order = chosen.flatten().argsort()
    ends = torch.histc(chosen.flatten().float(), bins=4, min=0, max=3).cumsum(0).to(torch.int32)
    hidden = torch.tanh(multiply(x[order], m.up, ends))
    return (multiply(hidden, m.down, ends) * weight[order])[order.argsort()]


def _rows(m: Any, x: Tensor) -> Tensor:
    """Eight rows for each of four matrices."""
    ends = torch.tensor([8, 16, 24, 32], dtype=torch.int32)
    return A._grouped_mm(torch.tanh(A._grouped_mm(x, m.up, ends)), m.down, ends)


def _counted(_: Any, h: Tensor) -> Tensor:
    return torch.histc(h.topk(2, -1).indices.float(), bins=6, min=0, max=5)


A = torch.ops.aten
_SCALAR = "a scalar has no axes to tie or pin"
_SIX: Layers = {"g": parameter(6), "c": parameter(6)}


_KEEP: Steps = {
    "dropout": lambda h: A.dropout(h, 0.1, False),
    "dropout_": lambda h: A.dropout_(h, 0.1, False),
    "feature_dropout": lambda h: A.feature_dropout(h, 0.1, False),
    "alias": A.alias, "clone": A.clone, "contiguous": A.contiguous, "detach": A.detach, "detach_": A.detach_,
    "to": lambda h: h.to(torch.float32),
    "_to_copy": lambda h: A._to_copy(h, dtype=torch.float32),
    "type_as": lambda h: A.type_as(h, h), "lift_fresh_copy": A.lift_fresh_copy,
}  # fmt: skip

_POINTWISE: Steps = {
    "pointwise": torch.tanh,
    "where": lambda h: A.where(h > 0, h, -2 * h),
    "__and__": lambda h: A.__and__(h > -0.5, h < 0.5).to(h.dtype),
    "__or__": lambda h: A.__or__(h > 0.5, h < -0.5).to(h.dtype),
    "__xor__": lambda h: A.__xor__(h > 0.5, h > -0.5).to(h.dtype),
    "bitwise_and": lambda h: torch.bitwise_and(h > -0.5, h < 0.5).to(h.dtype),
    "floor_divide": lambda h: A.floor_divide(h, 0.5),
    "masked_fill": lambda h: A.masked_fill(h, h < 0, 0.1),
    "masked_fill_": lambda h: A.masked_fill_(h, h < 0, 0.1),
    "hardswish": A.hardswish, "hardswish_": A.hardswish_,
    "copy_": lambda h: A.copy_(torch.empty_like(h), h),
    "absolute": A.absolute, "negative": A.negative, "log_sigmoid": A.log_sigmoid, "gelu_": A.gelu_,
    "multiply": lambda h: A.multiply(h, torch.tanh(h)), "multiply_": lambda h: A.multiply_(h, 2.0),
    "divide": lambda h: A.divide(torch.tanh(h), 1 + h * h), "divide_": lambda h: A.divide_(h, 2.0),
    "subtract": lambda h: A.subtract(h, torch.tanh(h)), "subtract_": lambda h: A.subtract_(h, 2.0),
    "greater": lambda h: A.greater(h, 0).to(h.dtype), "greater_equal": lambda h: A.greater_equal(h, 0).to(h.dtype),
    "less": lambda h: A.less(h, 0).to(h.dtype), "less_equal": lambda h: A.less_equal(h, 0).to(h.dtype),
    "not_equal": lambda h: A.not_equal(torch.relu(h), 0).to(h.dtype),
    "isclose": lambda h: A.isclose(h, torch.tanh(h), 0.1, 0.1).to(h.dtype),
    "lerp": lambda h: torch.lerp(h, torch.tanh(h), 0.3),
    "rrelu": A.rrelu, "threshold": lambda h: A.threshold(h, 0.1, 0.2),
    "complex": lambda h: torch.complex(h, torch.tanh(h)).square().abs(),
    "polar": lambda h: torch.polar(h.exp(), torch.tanh(h)).square().angle(),
    "real": lambda h: A.real(torch.complex(h, torch.tanh(h)).square()),
    "imag": lambda h: A.imag(torch.complex(h, torch.tanh(h)).square()),
    "conj": lambda h: A.conj(torch.complex(h, torch.tanh(h))).angle(),
    "_conj": lambda h: A._conj(torch.complex(h, torch.tanh(h))).angle(),
    "resolve_conj": lambda h: A.resolve_conj(torch.complex(h, torch.tanh(h))).angle(),
    "softmax": lambda h: h.softmax(-1), "log_softmax": lambda h: h.log_softmax(-1),
    "_softmax": lambda h: A._softmax(h, -1, False), "_log_softmax": lambda h: A._log_softmax(h, -1, False),
}  # fmt: skip
_CONSTANTS: Steps = {
    "zeros": lambda _: torch.zeros(6), "ones": lambda _: torch.ones(6), "full": lambda _: torch.full((6,), 0.5),
    "empty": lambda _: torch.empty(6).fill_(0.5),
    "new_zeros": lambda a: a.new_zeros(6), "new_ones": lambda a: a.new_ones(6), "new_full": lambda a: a.new_full((6,), 2.0),
    "new_empty": lambda a: a.new_empty(6).fill_(0.5), "zeros_like": torch.zeros_like, "ones_like": torch.ones_like,
    "full_like": lambda a: torch.full_like(a, 0.5), "empty_like": lambda a: torch.empty_like(a).fill_(0.5),
    "fill_": lambda a: A.fill_(a.new_empty(6), 0.5), "expand": lambda a: a.mean(1, True).expand(3, 6),
    "expand_as": lambda a: a.mean(1, True).expand_as(a), "broadcast_to": lambda a: A.broadcast_to(a.mean(1, True), (3, 6)),
}  # fmt: skip
_TABLES: Steps = {
    "arange": lambda h: h * torch.arange(6), "linspace": lambda h: h * torch.linspace(1, 2, 6),
    "rand": lambda h: h + 0 * torch.rand(6), "randn": lambda h: h + 0 * torch.randn(6),
    "tril_indices": lambda h: (h[:, None] * torch.tril_indices(3, 3)).sum(1),
    "triu_indices": lambda h: (h[:, None] * torch.triu_indices(3, 3)).sum(1),
}  # fmt: skip
_HEADS: Steps = {
    "view": lambda h: h.view(3, 2, 3), "reshape": lambda h: h.reshape(3, 2, 3), "unflatten": lambda h: h.unflatten(1, (2, 3)),
    "_unsafe_view": lambda h: A._unsafe_view(h, [3, 2, 3]), "view_as": lambda h: A.view_as(h, torch.empty(3, 2, 3)),
    "reshape_as": lambda h: A.reshape_as(h, torch.empty(3, 2, 3)),
}  # fmt: skip
_TURNS: Steps = {
    "transpose": lambda h: h.transpose(0, 1), "swapaxes": lambda h: A.swapaxes(h, 0, 1), "t": lambda h: h.t(),
    "numpy_T": A.numpy_T, "permute": lambda h: h.permute(1, 0), "movedim": lambda h: A.movedim(h, 0, 1),
    "moveaxis": lambda h: A.moveaxis(h, 0, 1), "swapdims": lambda h: A.swapdims(h, 0, 1),
    "unsqueeze": lambda h: h.unsqueeze(-1),
}  # fmt: skip
_PARTS: dict[str, Callable[[Tensor], Any]] = {
    "split": lambda h: h.split(6, -1), "chunk": lambda h: h.chunk(2, -1), "unsafe_chunk": lambda h: A.unsafe_chunk(h, 2, -1),
    "unsafe_split": lambda h: A.unsafe_split(h, 6, -1), "tensor_split": lambda h: A.tensor_split(h, 2, -1),
}  # fmt: skip
_ALONG: Steps = {
    "topk": lambda h: h.topk(2, 1).values, "sort": lambda h: h.sort(1).values,
    "argsort": lambda h: h.argsort(1).to(h.dtype)[:, 1], "cumsum": lambda h: h.cumsum(1), "cumprod": lambda h: h.cumprod(1),
    "cummax": lambda h: h.cummax(1).values, "logcumsumexp": lambda h: h.logcumsumexp(1), "flip": lambda h: h.flip(1),
    "roll": lambda h: h.roll(1, 1), "diff": lambda h: h.diff(dim=1), "mean": lambda h: h.mean(1), "sum": lambda h: h.sum(1),
    "amax": lambda h: h.amax(1), "amin": lambda h: h.amin(1), "var": lambda h: h.var(1), "std": lambda h: h.std(1),
    "logsumexp": lambda h: h.logsumexp(1), "norm": lambda h: A.norm(h, 2, [1]), "any": lambda h: (h > 1).any(1).to(h.dtype),
    "all": lambda h: (h > -0.5).all(1).to(h.dtype), "linalg_vector_norm": lambda h: torch.linalg.vector_norm(h, dim=1),
    "max": lambda h: h.max(1).values, "min": lambda h: h.min(1).values, "median": lambda h: h.median(1).values,
    "mode": lambda h: h.mode(1).values, "kthvalue": lambda h: h.kthvalue(2, 1).values,
    "prod": lambda h: h.prod(1), "count_nonzero": lambda h: torch.count_nonzero(h > 0, 1).to(h.dtype),
    "argmax": lambda h: h.argmax(1).to(h.dtype), "argmin": lambda h: h.argmin(1).to(h.dtype),
    "index_select": lambda h: h.index_select(1, torch.tensor([2, 0])), "select": lambda h: h.select(1, 0),
    "gather": lambda h: h.gather(1, torch.zeros(3, 1, 6, dtype=torch.int64)),
    "take_along_dim": lambda h: torch.take_along_dim(h, torch.zeros(1, 1, 1, dtype=torch.int64), 1),
    "squeeze": lambda h: h[:, :1].squeeze(1),
    "select_scatter": lambda h: A.select_scatter(h, torch.tanh(h[:, 1]), 1, 0),
    "index_put": lambda h: A.index_put(h, [torch.tensor([0, 1]), torch.tensor([2, 3])], torch.tanh(h[:2, 0])),
    "index_put_": lambda h: A.index_put_(h.clone(), [torch.tensor([0, 1]), torch.tensor([2, 3])], torch.tanh(h[:2, 0])),
}  # fmt: skip
_PICTURES: Steps = {
    "max_pool2d": lambda h: A.max_pool2d(h, [2]), "avg_pool2d": lambda h: A.avg_pool2d(h, [2]),
    "adaptive_avg_pool2d": lambda h: A.adaptive_avg_pool2d(h, [2, 2]),
    "adaptive_max_pool2d": lambda h: A.adaptive_max_pool2d(h, [2, 2])[0],
    "upsample_nearest2d": lambda h: A.upsample_nearest2d(h, [8, 8]),
    "upsample_bilinear2d": lambda h: A.upsample_bilinear2d(h, [8, 8], False),
    "upsample_bicubic2d": lambda h: A.upsample_bicubic2d(h, [8, 8], False),
    "_upsample_bilinear2d_aa": lambda h: A._upsample_bilinear2d_aa(h, [8, 8], False),
}  # fmt: skip
_PICTURES_1D: Steps = {
    "conv1d": torch.tanh, "max_pool1d": lambda h: A.max_pool1d(h, [2]), "avg_pool1d": lambda h: A.avg_pool1d(h, [2]),
    "adaptive_avg_pool1d": lambda h: A.adaptive_avg_pool1d(h, [2]),
}  # fmt: skip
_PICTURES_3D: Steps = {
    "conv3d": torch.tanh, "max_pool3d": lambda h: A.max_pool3d(h, [2]), "avg_pool3d": lambda h: A.avg_pool3d(h, [2]),
    "adaptive_avg_pool3d": lambda h: A.adaptive_avg_pool3d(h, [2, 2, 2]),
}  # fmt: skip


def _all() -> Iterator[RuleCase]:
    makers: list[tuple[Callable[[str, Callable[[Tensor], Any]], RuleCase], Steps]] = [
        (elementwise, _KEEP | _POINTWISE), (constant, _CONSTANTS), (numbered, _TABLES), (two_heads, _HEADS),
        (turned, _TURNS), (two_parts, _PARTS), (along, _ALONG), (picture, _PICTURES | {"conv2d": torch.tanh}),
    ]  # fmt: skip
    for make, table in makers:
        yield from (make(name, step) for name, step in table.items())
    for rank, table in ((1, _PICTURES_1D), (3, _PICTURES_3D)):
        yield from (picture(name, step, rank) for name, step in table.items())
    yield from _layouts()
    yield from _others()
    yield from _contractions()
    yield from _norms()
    yield from pins()
    yield from ties()
    yield from mixed()
    yield from beside_heads()
    yield from chosen()


def _layouts() -> Iterator[RuleCase]:
    yield through("flatten", lambda _, h: h.flatten(1), leave=12, shape=(3, 2, 7))
    yield through("ravel", lambda _, h: h.ravel(), leave=12, shape=(2, 7))
    yield through("repeat", lambda _, h: h.repeat(1, 2), "1x6 1x2/6", leave=12)
    yield through("repeat_interleave", lambda _, h: h.repeat_interleave(2, 1), "1x6 1x2/6", leave=12)
    yield through(
        "cat", lambda m, h: torch.cat([h, torch.tanh(m.two(h))], -1), "1x6 1x4", leave=10, more={"two": dense(6, 4)}
    )
    yield through(
        "concat", lambda m, h: A.concat([h, torch.tanh(m.two(h))], -1), "1x6 1x4", leave=10, more={"two": dense(6, 4)}
    )
    yield through(
        "concatenate",
        lambda m, h: A.concatenate([h, torch.tanh(m.two(h))], -1),
        "1x6 1x4",
        leave=10,
        more={"two": dense(6, 4)},
    )
    yield through("stack", lambda _, h: torch.stack([h, torch.tanh(h)], 1))
    yield two_parts("split_with_sizes", lambda h: h.split_with_sizes([4, 8], -1), 4)
    yield two_heads("unfold", lambda h: h.unfold(1, 3, 3))
    yield through("unfold", lambda _, h: h.unfold(1, 4, 2).flatten(1), "", leave=8)
    yield through("unbind", lambda _, h: torch.add(*h.unbind(1)), shape=(3, 2, 7))
    yield through("slice", lambda _, h: h[:, 2:], "1x2 1x4", leave=4)
    yield through("narrow", lambda _, h: A.narrow(h, 1, 2, 4), "1x2 1x4", leave=4)
    yield through("pad", lambda _, h: functional.pad(h, (1, 2)), leave=9)
    yield through("constant_pad_nd", lambda _, h: A.constant_pad_nd(h, [1, 2]), leave=9)
    yield through(
        "slice_scatter",
        lambda m, h: A.slice_scatter(h, torch.tanh(m.two(h)), 1, 0, 4),
        "1x4 1x2",
        more={"two": dense(6, 4)},
    )


def _others() -> Iterator[RuleCase]:
    yield numbered("eye", lambda h: h @ torch.eye(6, 9, dtype=h.dtype), 9)
    yield between(
        "scalar_tensor",
        lambda _, a, b: (a + torch.scalar_tensor(0.5), b),
        harmless={"loosened": _SCALAR, "unknown": _SCALAR},
    )
    yield through("prelu", lambda m, h: functional.prelu(h, m.g), more=_SIX)
    yield through("glu", lambda _, h: functional.glu(h), width=12)
    yield between("copy", lambda _, a, b: (A.copy(a, b), b), "2x6")
    yield plain(
        "embedding",
        {"table": lambda: nn.Embedding(9, 6), "leave": dense(6, 5)},
        lambda m, x: m.leave(m.table(x)),
        "1x6",
        lambda: tokens(2, 3, 9),
        {},
    )
    yield plain(
        "index",
        {"table": parameter(9, 6), "leave": dense(6, 5)},
        lambda m, x: m.leave(m.table[x]),
        "1x6",
        lambda: tokens(2, 3, 9),
        {},
    )
    yield through("histc", _counted)
    yield through("mT", lambda _, h: h[:, None].mT.squeeze(2))
    yield through("movedim", lambda _, h: h[:, None, :, None].movedim([2, 1], [1, 2])[:, :, 0, 0])
    for name in ("view_as_complex", "view_as_real"):
        yield through(
            name, lambda _, h: torch.view_as_real(torch.view_as_complex(h.view(3, 3, 2)).square()).flatten(1), "1x3"
        )


def _contractions() -> Iterator[RuleCase]:
    yield through("linear", lambda _, h: torch.tanh(h))
    yield _weighted("addmm", lambda m, h: torch.addmm(m.c, h, m.w))
    yield _weighted("baddbmm", lambda m, h: torch.baddbmm(m.c, h.expand(3, 3, 6), m.w.expand(3, 6, 5)))
    yield _weighted("matmul", lambda m, h: h @ m.w)
    yield _weighted("mm", lambda m, h: torch.mm(h, m.w))
    yield _weighted("bmm", lambda m, h: torch.bmm(h[None], m.w[None]))
    yield _weighted("mv", lambda m, h: torch.mv(h, m.v))
    yield _weighted("dot", lambda m, h: torch.dot(h[0], m.v) + h.new_ones(3).cumsum(0))
    yield _weighted("einsum", lambda m, h: torch.einsum("bi,io->bo", h, m.w))
    attention: Layers = {"q": dense(7, 6), "k": dense(7, 6), "v": dense(7, 8), "leave": dense(8, 5)}
    yield plain("scaled_dot_product_attention", attention, _attend, "1x2 1x3/2 1x4/2", lambda: normal(2, 4, 7), {})
    yield plain(
        "transformers::grouped_mm_fallback",
        {"router": dense(8, 4), "up": parameter(4, 8, 16), "down": parameter(4, 16, 8)},
        _experts, "1x4 1x16/4", lambda: normal(32, 8), {},
    )  # fmt: skip
    yield plain(
        "_grouped_mm",
        {"up": half(4, 8, 16), "down": half(4, 16, 8)},
        _rows,
        "1x16/4",
        lambda: normal(32, 8).bfloat16(),
        {},
    )


def _weighted(operator: str, forward: Forward) -> RuleCase:
    layers: Layers = {"enter": dense(7, 6), "w": parameter(6, 5), "c": parameter(5), "v": parameter(6)}
    return plain(operator, layers, lambda m, x: forward(m, m.enter(x)), "1x6", lambda: normal(3, 7), {})


def _places(h: Tensor, places: int) -> Tensor:
    """Units as channels at some places: ``[3, units]`` to ``[3, channels, places]``."""
    return h.view(3, places, -1).transpose(1, 2)


def _norms() -> Iterator[RuleCase]:
    yield through("layer_norm", lambda m, h: m.norm(h), more={"norm": lambda: nn.LayerNorm(6)})
    yield through("rms_norm", lambda m, h: m.norm(h), more={"norm": lambda: nn.RMSNorm(6)})
    yield through("batch_norm", lambda m, h: m.norm(h), more={"norm": lambda: nn.BatchNorm1d(6)})
    images: Layers = {"enter": lambda: nn.Conv1d(2, 6, 1), "norm": lambda: nn.InstanceNorm1d(6, affine=True)}
    yield plain(
        "instance_norm", {**images, "leave": lambda: nn.Conv1d(6, 5, 1)}, lambda m, x: m.leave(m.norm(m.enter(x))), "1x6",
        lambda: normal(3, 2, 4), {},
    )  # fmt: skip
    yield through("group_norm", lambda m, h: m.norm(h), "1x2 1x3/2", more={"norm": lambda: nn.GroupNorm(2, 6)})
    yield through(
        "group_norm", lambda _, h: functional.group_norm(_places(h, 3), 2).transpose(1, 2).flatten(1), "1x2 1x3/2 1x2/6", width=12, leave=12
    )  # fmt: skip
    yield through(
        "batch_norm",
        lambda _, h: functional.batch_norm(_places(h, 3), None, None, training=True).transpose(1, 2).flatten(1),
        "1x2 1x3/2",
    )
    yield through(
        "_native_batch_norm_legit_no_training",
        lambda m, h: A._native_batch_norm_legit_no_training(h, m.g, m.c, m.mean, m.var.abs(), 0.1, 1e-5)[0],
        more={**_SIX, "mean": parameter(6), "var": parameter(6)},
    )
    yield plain(
        "_weight_norm", {"v": parameter(6, 7), "g": parameter(6, 1), "leave": dense(6, 5)},
        lambda m, x: m.leave(functional.linear(x, A._weight_norm(m.v, m.g, 0))), "1x6", lambda: normal(3, 7), {},
    )  # fmt: skip


CASES: tuple[RuleCase, ...] = tuple(_all())
