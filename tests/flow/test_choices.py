"""Experts chosen by number: their units have a map per expert only where one choice picks every weight that touches them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.integrations import moe  # noqa: F401  # registers the operator

import otfuse
from named import Named
from otfuse.testing.law import EXACT, Bench, moves
from otfuse.testing.record import normal, randomise

grouped_mm = torch.ops.transformers.grouped_mm_fallback


def tensor(*shape):
    return nn.Parameter(torch.zeros(shape))


def up(m, chosen, x):
    return torch.tanh(torch.einsum("bkfd,bd->bkf", m.up[chosen], x))


def down(m, chosen, h):
    return torch.einsum("bkof,bkf->bo", m.down[chosen], h)


def top(m, x, count=2):
    return m.router(x).topk(count, -1).indices


def between(step):
    """What happens to the hidden values of the chosen experts before the same experts read them."""

    def forward(m, x):
        chosen = top(m, x)
        return down(m, chosen, step(m, up(m, chosen, x), chosen))

    return forward


def numbers(step):
    """What happens to the numbers of the experts before they choose again."""

    def forward(m, x):
        chosen = top(m, x)
        return down(m, step(chosen), up(m, chosen, x))

    return forward


def best(again):
    """One expert for each example, and the numbers that choose the second weight."""

    def forward(m, x):
        first = m.router(x).max(-1).indices
        hidden = torch.tanh(torch.einsum("bfd,bd->bf", m.up[first], x))
        return torch.einsum("bof,bf->bo", m.down[again(m, x, first)], hidden)

    return forward


def both(step):
    """Hidden values and numbers moved alike, and the numbers changed."""

    def forward(m, x):
        chosen = top(m, x)
        moved = step(up(m, chosen, x).flatten(1)).view(-1, 2, 9)
        return down(m, step((chosen + 1) % 4), moved)[: len(x)]

    return forward


def rows(step=lambda h: h, bias=lambda ids, _: ids, descending=False):
    """Rows sorted by expert, one matrix for each run of them."""

    def forward(m, x):
        chosen = top(m, x).reshape(-1)
        ids, order = chosen.sort(descending=descending)
        ends = torch.histc(ids.float(), bins=4, min=0, max=3).cumsum(0, dtype=torch.int32)
        hidden = grouped_mm(x[order // 2], m.up.transpose(1, 2), ends) + m.bias[bias(ids, chosen)]
        given = grouped_mm(step(torch.tanh(hidden)), m.down.transpose(1, 2), ends)
        return given[order.argsort()].view(len(x), 2, 5).sum(1)

    return forward


def twice(m, x):
    for _ in range(2):
        chosen = top(m, x)
        x = x + m.back(down(m, chosen, up(m, chosen, x)))
    return x


def shifted(value):
    zeros = torch.zeros_like(value)
    zeros[1:].copy_(value[:-1])
    return zeros


def in_place(m, x):
    chosen = top(m, x)
    hidden = up(m, chosen, x)
    chosen.copy_(3 - chosen)
    return down(m, chosen, hidden)


def spread(h):
    return h[:, None].expand(-1, len(h), -1, -1)


APART = {  # a map for every expert
    "the same numbers": between(lambda m, h, c: h),
    "a gain and a bias of the experts": between(lambda m, h, c: h * m.bias[c] + functional.embedding(c, m.bias)),
    "the same numbers, laid out otherwise": between(lambda m, h, c: h + m.bias[c.t()].transpose(0, 1) + m.bias[c.reshape(-1)].view(-1, 2, 9)),
    "a second layer of the experts": between(lambda m, h, c: h + torch.einsum("bkgf,bkf->bkg", m.square[c], h)),
    "a norm over the units": between(lambda m, h, c: functional.normalize(h, dim=-1)),
    "one expert": best(lambda m, x, first: first),
    "sorted rows": rows(),
    "applied twice": twice,
}  # fmt: skip
TOGETHER = {  # one map for all experts
    "mixed: hidden values turned round": between(lambda m, h, c: h.flip(1)),
    "mixed: of the neighbour": between(lambda m, h, c: h + h.roll(1, 0)),
    "mixed: the larger neighbour": between(lambda m, h, c: functional.max_pool1d(h.transpose(1, 2), 3, 1, 1).transpose(1, 2)),
    "mixed: less the mean of all": between(lambda m, h, c: h - h.mean(0)),
    "moved: pad": between(lambda m, h, c: h + functional.pad(h, (0, 0, 1, -1))),
    "moved: pad along the batch": between(lambda m, h, c: functional.pad(h, (0, 0, 0, 0, 2, -2))),
    "moved: halves exchanged": between(lambda m, h, c: torch.cat(h.chunk(2)[::-1])),
    "moved: written one further": between(lambda m, h, c: h + shifted(h)),
    "moved: seen in another shape": between(lambda m, h, c: h + h.reshape(4, -1, 9).transpose(0, 1).reshape(-1, 2, 9)),
    "moved: repeated and cut": between(lambda m, h, c: h + h.repeat(1, 2, 1)[:, 1:3]),
    "moved: windows": between(lambda m, h, c: h + torch.cat([h, h[:1]]).unfold(0, 2, 1)[..., 1]),
    "moved: spread over other examples": lambda m, x: torch.einsum("bkof,abkf->bo", m.down[top(m, x)], spread(up(m, top(m, x), x))),
    "moved: one of two chosen": lambda m, x: torch.einsum("bof,bf->bo", m.down[top(m, x)[:, 1]], up(m, top(m, x), x)[:, 0]),
    "numbers turned round": numbers(lambda c: c.flip(1)),
    "numbers of the neighbour": numbers(lambda c: c.roll(1, 0)),
    "numbers one further": numbers(shifted),
    "numbers changed": numbers(lambda c: (c + 1) % 4),
    "numbers changed by a cast": numbers(lambda c: c.to(torch.bool).long()),
    "numbers changed in place": in_place,
    "numbers seen in another shape": numbers(lambda c: c.t().reshape(-1, 2)),
    "numbers looked up": numbers(lambda c: c[torch.arange(len(c) - 1, -1, -1)]),
    "both: pad": both(lambda v: functional.pad(v, (0, 0, 2, 0))),
    "both: cat": both(lambda v: torch.cat([v, v])),
    "two choices of one router": lambda m, x: down(m, (-m.router(x)).topk(2, -1).indices, up(m, top(m, x), x)),
    "two choices of one expert": best(lambda m, x, _: (-m.router(x)).max(-1).indices),
    "a bias looked up by another choice": between(lambda m, h, c: h + functional.embedding((c + 1) % 4, m.bias)),
    "a bias that all experts have": between(lambda m, h, c: h + m.bias[0]),
    "all experts beside the chosen": between(lambda m, h, c: (h[:, :, None] * m.bias).sum(2)),
    "sorted rows moved": rows(lambda h: h.roll(1, 0)),
    "sorted rows padded": rows(lambda h: functional.pad(h, (0, 0, 1, -1))),
    "sorted rows, a bias by numbers unsorted": rows(bias=lambda _, chosen: chosen),
    "sorted rows, a bias by numbers turned round": rows(bias=lambda ids, _: ids.flip(0)),
    "rows sorted downwards": rows(descending=True),
}  # fmt: skip


@pytest.mark.parametrize(("forward", "copies"), [
    *(pytest.param(forward, 4, id=name) for name, forward in APART.items()),
    *(pytest.param(forward, 1, id=name) for name, forward in TOGETHER.items()),
])  # fmt: skip
def test_units_of_experts_have_a_map_each_only_where_one_choice_tells_the_expert(forward, copies):
    weights = {"up": tensor(4, 9, 7), "down": tensor(4, 5, 9), "square": tensor(4, 9, 9), "bias": tensor(4, 9)}
    model = Named(forward, {"router": nn.Linear(7, 4), "back": nn.Linear(5, 7), **weights})
    model = randomise(model.eval(), 0)
    graph = otfuse.trace(model, (normal(6, 7),))
    members = {(s.size, s.copies) for s in graph.free if any(m.tensor == "up" and m.axis == 1 for m in s.members)}
    assert members == {(9, copies)}
    for examples in (6, 12):
        assert Bench(model, (normal(examples, 7, seed=1),)).change(moves(graph.free, 1)) < EXACT


def test_an_example_of_one_hides_what_moves_along_the_batch():
    forward = between(lambda m, h, c: h + h.roll(1, 0))
    model = Named(forward, {"router": nn.Linear(7, 4), "up": tensor(4, 9, 7), "down": tensor(4, 5, 9)})
    model = randomise(model.eval(), 0)
    graph = otfuse.trace(model, (normal(1, 7),))
    assert Bench(model, (normal(6, 7, seed=1),)).change(moves(graph.free, 1)) < EXACT
