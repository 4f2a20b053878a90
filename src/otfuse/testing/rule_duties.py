"""Cases for the single things that a rule has to say: this is pinned, these are tied, those are mixed."""

# mypy: disable-error-code="no-any-return"
# operators of PyTorch whose names begin with an underscore
# Calls of nn.Module and of torch.ops have no type; the lambdas below are examples of user code, which does not cast.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from otfuse.testing.record import normal
from otfuse.testing.rule_probes import dense, parameter, plain, through

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otfuse.testing.rule_probes import Layers
    from otfuse.testing.rules import RuleCase

A: Any = torch.ops.aten


def pins() -> Iterator[RuleCase]:
    """The order of the units means something, and this operator alone says so."""
    yield through("topk", lambda _, h: h.topk(4, -1).indices.to(h.dtype), "", leave=4)
    yield through("max", lambda _, h: h.max(-1, keepdim=True).indices.to(h.dtype), "", leave=1)
    yield through("argmax", lambda _, h: h.argmax(-1, True).to(h.dtype), "", leave=1)
    yield through("argmin", lambda _, h: h * h.argmin(), "")
    yield through("sort", lambda _, h: h.sort(-1).indices.to(h.dtype), "")
    yield through("roll", lambda _, h: h.roll(1, -1), "")
    yield through("gather", lambda _, h: h.gather(1, torch.tensor([[1, 4]]).expand(3, 2)), "", leave=2)
    yield through("scatter", lambda _, h: A.scatter(h, 1, torch.tensor([[1, 4]]).expand(3, 2), 0.5), "")
    yield through("scatter_", lambda _, h: A.scatter_(h.clone(), 1, torch.tensor([[1, 4]]).expand(3, 2), 0.5), "")
    yield through("index_put", lambda _, h: A.index_put(h, [None, torch.tensor([1, 3])], torch.tensor(0.5)), "")
    yield through("index_put", lambda _, h: A.index_put(torch.zeros_like(h), [torch.tensor([2, 0, 1])], torch.tanh(h)))
    there = torch.tensor([[False, True, True]] * 3)[..., None]
    yield through(
        "masked_scatter",
        lambda _, h: A.masked_scatter(torch.zeros(3, 3, 2), there, torch.tanh(_heads(h))).flatten(1),
        "1x2",
    )
    yield through("cumsum", lambda _, h: h.view(3, 3, 2).cumsum(1).flatten(1), "1x2")
    yield through("avg_pool1d", lambda _, h: A.avg_pool1d(h[:, None], [3], [1], [1]).squeeze(1), "")
    yield through(
        "conv1d", lambda m, h: m.slide(h[:, None]).squeeze(1), "", more={"slide": lambda: nn.Conv1d(1, 1, 3, padding=1)}
    )
    yield through("stack", lambda _, h: torch.stack([h, torch.tanh(h)], -1).flatten(1), leave=12)
    yield through("unbind", lambda _, h: torch.stack(h.unbind(1), 1), "")


def ties() -> Iterator[RuleCase]:
    """Two hidden values, tied by this operator alone; or not tied by what is constant."""
    yield through(
        "gather",
        lambda m, h: h.gather(1, m.other(torch.tanh(h.flip(1))).argsort(1)),
        shape=(3, 4, 7),
        more={"other": dense(6, 6)},
    )
    there = torch.tensor([[True, False, True, True], [False, True, False, False], [True, False, False, False]])
    for name, write in (
        ("masked_scatter", lambda h, new: A.masked_scatter(h, there[..., None], new)),
        ("masked_scatter_", lambda h, new: A.masked_scatter_(h.clone(), there[..., None].expand_as(h), new)),
        ("index_put", lambda h, new: A.index_put(h, [there], new[:, 1:3].flatten(0, 1)[:5])),
        ("scatter", lambda h, new: A.scatter(h, 1, torch.tensor([1, 3])[None, :, None].expand(3, 2, 6), new[:, 1:3])),
    ):

        def joined(m: Any, h: Tensor, write: Callable[[Tensor, Tensor], Tensor] = write) -> Tensor:
            return write(h, m.other(torch.tanh(h)))

        yield through(name, joined, shape=(3, 4, 7), more={"other": dense(6, 6)})
    yield through("max", lambda _, h: A.max(h, -2 * h))
    for name, again in (
        ("repeat", lambda h: h.repeat(1, 2)),
        ("repeat_interleave", lambda h: h.repeat_interleave(2, 1)),
    ):
        layers: Layers = {
            "a": dense(7, 6),
            "b": dense(7, 12),
            "c": dense(7, 12),
            "p": dense(12, 5),
            "q": dense(12, 5),
        }

        def forward(m: Any, x: Tensor, again: Callable[[Tensor], Tensor] = again) -> Tensor:
            repeated = again(m.a(x))
            return m.p(torch.tanh(repeated + m.b(x))) + m.q(torch.tanh(repeated + m.c(x)))

        yield plain(name, layers, forward, "1x6 2x2/6", lambda: normal(3, 7), {})


def mixed() -> Iterator[RuleCase]:
    """Units of one head meet those of another, so that all heads need one map."""
    yield _gram("linear", functional.linear)
    yield _gram("addmm", lambda a, b: torch.addmm(torch.ones(2, 2), a, b.t()))
    yield _gram("matmul", lambda a, b: a @ b.t())
    yield _gram("einsum", lambda a, b: torch.einsum("hd,gd->hg", a, b))
    yield _gram("conv1d", lambda a, b: torch.conv1d(a[:, :, None], b[:, :, None]))
    yield _across("scaled_dot_product_attention", lambda h: functional.scaled_dot_product_attention(h, h, h), "1x2 1x3")
    yield _across("softmax", lambda h: h.softmax(1))
    yield _across("layer_norm", lambda h: functional.layer_norm(h.transpose(1, 2), (2,)).transpose(1, 2))
    yield plain(
        "transformers::grouped_mm_fallback", {"enter": dense(7, 64)}, _grouped_gram, "1x8", lambda: normal(7), {}
    )


def beside_heads() -> Iterator[RuleCase]:
    """Heads exchanged, chosen or averaged, and added to what they were: their two units need one map for all heads."""
    turned = torch.tensor([1, 0, 2])

    def kept(operator: str, step: Callable[[Tensor], Tensor]) -> RuleCase:
        return through(operator, lambda _, h: torch.tanh(_heads(h) + step(_heads(h))).flatten(1), "1x2")

    yield kept("topk", lambda v: v.topk(3, 1).values)
    yield kept("sort", lambda v: v.sort(1).values)
    yield kept("gather", lambda v: v.gather(1, turned[None, :, None].expand(3, 3, 2)))
    yield kept("scatter", lambda v: A.scatter(torch.zeros_like(v), 1, turned[None, :, None].expand(3, 3, 2), v.tanh()))
    yield kept("index", lambda v: v[:, turned])
    yield kept("index_put", lambda v: A.index_put(torch.zeros_like(v), [None, turned], torch.tanh(v)))
    there = torch.tensor([[False, True, True]] * 3)
    yield kept("index_put", lambda v: A.index_put(torch.zeros_like(v), [there], torch.tanh(v).flatten(0, 1)[:6]))
    yield kept("masked_scatter", lambda v: A.masked_scatter(torch.zeros_like(v), there[..., None], torch.tanh(v)))
    yield kept("avg_pool1d", lambda v: A.avg_pool1d(v.transpose(1, 2), [3], [1], [1]).transpose(1, 2))


def chosen() -> Iterator[RuleCase]:
    """Units of experts that one choice picks have a map each; a bias picked by another choice wants one for all."""
    layers: Layers = {"r": dense(7, 4), "up": parameter(4, 9, 7), "down": parameter(4, 5, 9), "bias": parameter(4, 9)}

    def kept(operator: str, bias: Callable[[Any, Tensor], Tensor], spaces: str) -> RuleCase:
        def forward(m: Any, x: Tensor) -> Tensor:
            number = m.r(x).topk(2, -1).indices
            hidden = torch.tanh(torch.einsum("bkfd,bd->bkf", m.up[number], x) + bias(m, number))
            return torch.einsum("bkof,bkf->bo", m.down[number], hidden)

        return plain(operator, layers, forward, spaces, lambda: normal(6, 7), {})

    yield kept("index", lambda m, number: m.bias[number], "1x4 1x9/4")
    yield kept("embedding", lambda m, number: functional.embedding(number.flip(1), m.bias), "1x4 1x9")
    wide = torch.Size((12, 9))
    yield kept("gather", lambda m, n: m.bias.gather(0, n.reshape(12, 1).expand(wide)).view(6, 2, 9), "1x4 1x9")
    for name, step in (
        ("gather", lambda score, number: score.gather(1, number)),
        ("scatter", lambda score, number: score * A.scatter(torch.zeros_like(score), 1, number, 2.0)),
        ("cat", lambda score, number: score.gather(1, torch.cat([number, number.flip(1)], 1))),
    ):
        layers = {"a": dense(7, 4), "b": dense(7, 4)}

        def scored(m: Any, x: Tensor, step: Callable[[Tensor, Tensor], Tensor] = step) -> Tensor:
            """Scores read, or masked, by which are the largest of others."""
            return step(torch.tanh(m.b(x)), m.a(x).topk(2, -1).indices).sum(1, keepdim=True)

        yield plain(name, layers, scored, "1x4", lambda: normal(6, 7), {})


def _heads(h: Tensor) -> Tensor:
    return h.view(3, 3, 2)


def _gram(operator: str, product: Callable[[Tensor, Tensor], Tensor]) -> RuleCase:
    """Every head times every head; the heads are an output, their three units are common."""

    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.enter(x).view(2, 3)
        return product(h, h)

    return plain(operator, {"enter": dense(7, 6)}, forward, "1x3", lambda: normal(7), {})


def _across(operator: str, step: Callable[[Tensor], Tensor], spaces: str = "1x3 1x2/3") -> RuleCase:
    """Two heads of three units, mixed over the heads of every unit: these may move apart, but not its units."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.leave(step(m.enter(x).view(3, 2, 3)).flatten(1))

    return plain(operator, {"enter": dense(7, 6), "leave": dense(6, 5)}, forward, spaces, lambda: normal(3, 7), {})


def _grouped_gram(m: Any, x: Tensor) -> Tensor:
    from transformers.integrations import moe  # noqa: F401  # registers the operator

    h = m.enter(x).view(8, 8)
    return torch.ops.transformers.grouped_mm_fallback(h, h.t()[None], torch.tensor([8], dtype=torch.int32))
