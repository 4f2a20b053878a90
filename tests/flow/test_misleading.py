"""Small functions on which a derivation went wrong once, or could: judged by the law on inputs it has not seen."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

import otfuse
from named import Named, into
from otfuse.core.space import Group
from otfuse.errors import GateError
from otfuse.flow.proof.gate import verify_graph
from otfuse.program.export import export
from otfuse.testing.law import EXACT, Bench, moves
from otfuse.testing.record import normal, randomise


def tensor(*shape):
    return nn.Parameter(torch.zeros(shape))


def latents(m, x):
    q, k, v = (f(m.latent)[None, None] for f in (m.q, m.k, m.v))
    seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)[0, 0]
    return m.b(torch.tanh(seen).mean(0)[None] * torch.tanh(m.a(x)))


def padded(m, x):
    h = torch.tanh(torch.cat([x.new_zeros(len(x), 4), m.a(x)], -1) + m.c(x))
    return m.b(h[:, :4]) + m.d(h[:, 4:])


def written(m, x):
    zeros = x.new_zeros(len(x), 12)
    zeros[:, m.order] = torch.relu(m.a(x))
    return m.b(zeros)


def heads(step):
    """Six heads of four units, and what happens to them before a layer reads all."""
    layers = {"a": nn.Linear(7, 24), "b": nn.Linear(24, 4), "w": tensor(6, 4)}
    return (lambda m, x: m.b(torch.tanh(step(m, torch.tanh(m.a(x)).view(-1, 6, 4))).flatten(1))), layers


def spread(h):
    return h[:, :, None].expand(-1, -1, h.shape[1], -1)


def with_gradient(zeros, h):
    with torch.enable_grad():
        zeros[:, :4].add_(h[:, 4:])


def without_gradient(m, x):
    with torch.no_grad():
        h = torch.relu(m.a(x))
    return m.b(h)


def turned(z, cos, sin, *, sign=-1, after=lambda z: z):
    half = z.shape[-1] // 2
    return after(z * cos + torch.cat([sign * z[..., half:], z[..., :half]], -1) * sin)


def rotary(turn, *, written_out=False, key_heads=2, layers=1):
    def forward(m, x):
        for i in range(layers):
            q, k, v = (getattr(m, f"{n}{i}")(x).view(*x.shape[:2], -1, 4).transpose(1, 2) for n in "qkv")
            q, k = turn(q), turn(k)
            if written_out:
                seen = ((q @ k.transpose(-1, -2)) * 0.5).softmax(-1) @ v
            else:
                seen = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            x = x + getattr(m, f"o{i}")(seen.transpose(1, 2).flatten(2))
        return m.leave(x)

    sizes = {"q": (6, 8), "k": (6, 4 * key_heads), "v": (6, 4 * key_heads), "o": (8, 6)}
    layers_ = {f"{name}{i}": nn.Linear(*size) for i in range(layers) for name, size in sizes.items()}
    return forward, {"leave": nn.Linear(6, 3), **layers_}


def angles(z, *, second=1.0):
    table = torch.arange(z.shape[-2])[:, None] * torch.tensor([1.0, 0.1])
    return torch.cat([table, second * table], -1).to(z.dtype)


def true_turn(z):
    return turned(z, angles(z).cos(), angles(z).sin())


def complex_turn(z):
    table = torch.polar(torch.ones(z.shape[-2], 2), torch.arange(z.shape[-2])[:, None] * torch.tensor([1.0, 0.1]))
    pairs = torch.view_as_complex(z.float().reshape(*z.shape[:-1], 2, 2))
    return torch.view_as_real(pairs * table).flatten(3).type_as(z)


def turns(make):
    return lambda z: make(z, angles(z))


L = nn.Linear
VECTORS, TOKENS = ((3, 7), (5, 7)), ((2, 5, 6), (3, 9, 6))
GROUPS = {"a": L(7, 15), "b": L(15, 4)}
LATENT = {"latent": tensor(6, 10), "q": L(10, 8), "k": L(10, 8), "v": L(10, 8), "a": L(7, 8), "b": L(8, 4)}
CASES = {  # name -> (forward, layers), shapes traced on and not seen, spaces expected as {(size, copies): how many}
    "cumsum over heads": ((lambda m, x: m.b(torch.tanh(m.a(x)).view(-1, 3, 5).cumsum(1).flatten(1)), GROUPS), VECTORS, {(5, 1): 1}),
    "flip over heads": ((lambda m, x: m.b(torch.tanh(m.a(x)).view(-1, 3, 5).flip(1).flatten(1)), GROUPS), VECTORS, {(5, 1): 1}),
    "heads in two orders": (heads(lambda m, h: h + h.view(-1, 2, 3, 4).transpose(1, 2).reshape(-1, 6, 4)), VECTORS, {(4, 1): 1}),
    "heads repeated and cut": (heads(lambda m, h: h + h.repeat(1, 2, 1)[:, 1:7]), VECTORS, {(4, 1): 1}),
    "heads repeated and taken by twos": (heads(lambda m, h: h + h.repeat(1, 2, 1)[:, 1::2]), VECTORS, {(4, 1): 1}),
    "heads spread over heads": (
        heads(lambda m, h: torch.einsum("bhwu,wu->bhw", spread(h), m.w).mean(2, keepdim=True) + h * m.w), VECTORS, {(4, 1): 1, (6, 1): 1}
    ),
    "instance norm over heads": (
        (lambda m, x: m.b(functional.instance_norm(torch.tanh(m.a(x)).view(-1, 3, 5).transpose(1, 2)).transpose(1, 2).flatten(1)), GROUPS),
        VECTORS, {(5, 1): 1, (3, 5): 1},
    ),
    "causal latents": ((latents, LATENT), VECTORS, {(10, 1): 1, (8, 1): 2}),
    "constants beside units": ((padded, {"a": L(7, 6), "c": L(7, 10), "b": L(4, 3), "d": L(6, 3)}), VECTORS, {(6, 1): 1, (4, 1): 1}),
    "written by number": ((written, {"a": L(7, 12), "b": L(12, 4), "order": torch.randperm(12)}), VECTORS, {}),
    "gathered in part": (
        (lambda m, x: m.b(torch.relu(m.a(x)).gather(0, torch.zeros(1, 5, dtype=torch.long))), {"a": L(7, 12), "b": L(5, 4)}),
        VECTORS, {(5, 1): 1, (7, 1): 1},
    ),
    "chosen numbers into another table": (
        (lambda m, x: m.b(m.e(m.a(x).topk(2).indices).sum(1)), {"a": L(7, 8), "e": nn.Embedding(10, 6), "b": L(6, 3)}),
        VECTORS, {(6, 1): 1},
    ),
    "out= a slice": (into(lambda z, h: torch.add(h[:, :6], 1, out=z[:, :6])), VECTORS, {(6, 1): 1, (2, 1): 2}),
    "written inside a region": (into(with_gradient), VECTORS, {(4, 1): 3}),
    "the same tensor under another type": (into(lambda z, h: z.type_as(h).add_(h)), VECTORS, {(8, 1): 1}),
    "without gradient inside": ((without_gradient, {"a": L(7, 8), "b": L(8, 3)}), VECTORS, {(8, 1): 1}),
    "slopes of channels": (
        (lambda m, x: m.b(m.p(m.a(x)).mean(2)), {"a": nn.Conv1d(6, 7, 1), "p": nn.PReLU(7), "b": L(7, 3)}),
        ((2, 6, 5), (3, 6, 9)), {(7, 1): 1},
    ),
    "einsum without an arrow": ((lambda m, x: m.b(torch.einsum("bi,ji", x, m.w)), {"w": tensor(9, 7), "b": L(9, 3)}), VECTORS, {(9, 1): 1}),
    "einsum with an ellipsis": (
        (lambda m, x: m.b(torch.einsum("...i,ji->...j", x, m.w)), {"w": tensor(9, 6), "b": L(9, 3)}), TOKENS, {(9, 1): 1}
    ),
    "rows that nothing read": (
        (lambda m, x: m.b(torch.tanh(m.a(x + m.places[:, : x.shape[1]])).cumsum(1)), {"places": tensor(1, 16, 6), "a": L(6, 9), "b": L(9, 5)}),
        TOKENS, {(9, 1): 1},
    ),
    "rotary": (rotary(true_turn), TOKENS, {(2, 1): 1, (2, 2): 1, (4, 2): 1}),
    "rotary, attention written out": (rotary(true_turn, written_out=True), TOKENS, {(2, 1): 1, (2, 2): 1, (4, 2): 1}),
    "rotary by complex numbers": (rotary(complex_turn), TOKENS, {(2, 1): 1, (2, 2): 1, (4, 2): 1}),
    "rotary, one key head, two layers": (rotary(true_turn, key_heads=1, layers=2), TOKENS, {(2, 1): 4, (4, 1): 2}),
    "no turn: both halves added": (rotary(turns(lambda z, a: turned(z, a.cos(), a.sin(), sign=1))), TOKENS, {(2, 1): 1, (4, 2): 1}),
    "no turn: hyperbolic": (rotary(turns(lambda z, a: turned(z, a.cosh(), a.sinh(), sign=1))), TOKENS, {(2, 1): 1, (4, 2): 1}),
    "no turn: cut off afterwards": (
        rotary(turns(lambda z, a: turned(z, a.cos(), a.sin(), after=torch.relu))), TOKENS, {(2, 1): 1, (4, 2): 1}
    ),
    "no turn: two angles": (
        rotary(lambda z: turned(z, angles(z, second=2.0).cos(), angles(z, second=2.0).sin())), TOKENS, {(2, 1): 1, (4, 2): 1}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_free_obeys_the_law_on_other_inputs_and_what_theory_frees_is_found(name):
    (forward, layers), shapes, expected = CASES[name]
    model = randomise(Named(forward, layers).eval(), 0)
    graph = otfuse.trace(model, (normal(*shapes[0]),))
    assert Counter((s.size, s.copies) for s in graph.spaces if s.pinned is None) == expected
    for shape in shapes:
        assert Bench(model, (normal(*shape, seed=1),)).change(moves(graph.free, 1)) < EXACT
    assert otfuse.verify(model, (normal(*shapes[0]),)).error < 1e-8


def shown(m, x, marks):
    """One unit is added to all, picked by an operator without a rule, where the marks say so."""
    h = torch.tanh(m.a(x))
    return m.b(h + marks * torch.rot90(h[:, None], 2, [1, 2])[:, 0, :1]) + m.d(torch.relu(m.c(x)))


def flipped(m, x, marks):
    h = torch.tanh(m.a(x))
    return m.b(torch.where(marks, h.flip(-1), h)) + m.d(torch.relu(m.c(x)))


NUMBERS, MARKS = torch.full((3, 1), 5), torch.ones(3, 1, dtype=torch.long)
HIDDEN = {  # the example input hides what a mask, a threshold or a number lets through
    "mask": (lambda m, x, mask: shown(m, x, mask > 0), torch.zeros(3, 1)),
    "mask of whole numbers": (lambda m, x, mask: shown(m, x, mask == 0), MARKS),
    "mask of whole numbers, all zero": (lambda m, x, mask: shown(m, x, mask == 1), 0 * MARKS),
    "mask of ones and zeros": (lambda m, x, mask: shown(m, x, mask == 0), torch.ones(3, 1)),
    "mask of which a row must keep something": (
        lambda m, x, mask: shown(m, x, mask[:, :1] == 0)
        * torch.zeros(3, 6).masked_fill(mask == 0, -torch.inf).softmax(-1).sum(-1, keepdim=True),
        MARKS.expand(3, 6),
    ),
    "threshold": (lambda m, x, _: shown(m, x, x[:, :1] > 1), MARKS),
    "token numbers cut off": (lambda m, x, ids: shown(m, x, ids.clamp(max=5) < 5), NUMBERS),
    "read by number": (lambda m, x, ids: shown(m, x, torch.arange(6).index_select(0, ids[:, 0])[:, None] < 5), NUMBERS),
    "number beside a table that ends": (lambda m, x, ids: shown(m, x, ids[:, 1:] == 1) + m.table(ids[:, 0]), 0 * MARKS.expand(3, 2)),
    "number that is never drawn": (lambda m, x, ids: flipped(m, x, ids == 999), NUMBERS),
    "value that is never drawn": (lambda m, x, _: flipped(m, x, x[:, :1] > 1e6), NUMBERS),
    "running sum under a mark that is never drawn": (
        lambda m, x, ids: m.b(torch.tanh(m.a(x)) + (ids == 999) * torch.tanh(m.a(x)).cumsum(-1)) + m.d(torch.relu(m.c(x))), NUMBERS
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_an_order_that_the_example_hides_is_seen(name):
    forward, mask = HIDDEN[name]
    layers = {"a": L(7, 12), "b": L(12, 4), "c": L(7, 200), "d": L(200, 4), "table": nn.Embedding(2, 4)}
    model = randomise(Named(forward, layers).eval(), 0)
    assert [s.size for s in otfuse.trace(model, (0.1 * normal(3, 7), mask)).free] == [200]


def test_rows_of_which_a_mask_leaves_nothing_do_not_count_against_a_space():
    def routed(m, x, mask):
        best, which = m.r(x).softmax(-1).topk(2)
        h = torch.tanh(torch.einsum("bi,bkio->bko", x, m.experts[which]))
        scores = (h @ h.transpose(1, 2)).masked_fill(mask[:, None] == 0, -torch.inf)  # a row of zeros is not a number
        return m.b((best[:, None] @ (scores.softmax(-1) @ h))[:, 0])

    layers = {"r": L(7, 5), "experts": tensor(5, 7, 6), "b": L(6, 4)}
    mask = torch.tensor([[1, 1], [1, 0], [0, 0]])
    model = randomise(Named(routed, layers).eval(), 0)
    assert (5, 1) in {(s.size, s.copies) for s in otfuse.trace(model, (normal(3, 7), mask)).free}


@pytest.mark.parametrize("turn", ["no turn: both halves added", "no turn: hyperbolic", "no turn: two angles"])
def test_a_turn_that_no_example_turned_is_not_believed(turn):
    (forward, layers), _, _ = CASES[turn]
    model = randomise(Named(forward, layers).eval(), 0)
    assert Group.ROTARY not in {space.group for space in otfuse.trace(model, (normal(2, 1, 6),)).spaces}


@pytest.mark.parametrize(("second", "believed"), [(1.0, True), (2.0, False)])
def test_a_turn_is_tried_at_other_positions_than_those_given(second, believed):
    def forward(m, x, places):
        table = places[:, None, :, None] * torch.tensor([1.0, 0.1])
        angle = torch.cat([table, second * table], -1).to(x.dtype)
        return rotary(lambda z: turned(z, angle.cos(), angle.sin()))[0](m, x)

    model = randomise(Named(forward, rotary(true_turn)[1]).eval(), 0)
    graph = otfuse.trace(model, (normal(2, 5, 6), torch.zeros(2, 5, dtype=torch.long)))
    assert (Group.ROTARY in {space.group for space in graph.spaces}) == believed


SINGLE = {  # harmless where there is one example only
    "turned over": lambda m, x: m.b(torch.tanh(m.a(x)).view(-1, len(x)).t()),
    "cut in rows": lambda m, x: m.b(torch.tanh(m.a(x)).reshape(-1, 4).reshape(3, -1, 4).transpose(0, 1).flatten(1)),
    "examples first among heads": lambda m, x: m.b(torch.tanh(m.a(x)).view(3, len(x), 4).transpose(0, 1).flatten(1)),
}


@pytest.mark.parametrize("name", SINGLE)
def test_units_that_one_example_does_not_mix_with_others_are_mixed_by_several(name):
    model = randomise(Named(SINGLE[name], {"a": L(7, 12), "b": L(12, 4)}).eval(), 0)
    graph = otfuse.trace(model, (normal(1, 7),))
    assert Bench(model, (normal(3, 7),)).change(moves(graph.free)) < EXACT
    assert graph.notes == ()


def cut_to_length(h):
    return functional.pad(torch.tanh(h)[..., : h.shape[1]], (0, 12 - h.shape[1]))


LENGTHS = {  # a number that is given looks like a factor of the units, or like nothing
    "two examples": (SINGLE["turned over"], (2, 7)),
    "one token": (lambda m, x: m.b(torch.tanh(m.a(x)).view(len(x), 12, -1).transpose(1, 2)), (2, 1, 7)),
    "tokens that number units": (lambda m, x: m.b(cut_to_length(m.a(x))), (2, 12, 7)),
    "tokens of the number to be tried": (lambda m, x: m.b(cut_to_length(m.a(x))), (2, 5, 7)),
}  # fmt: skip


@pytest.mark.parametrize("name", LENGTHS)
def test_what_holds_for_one_number_of_examples_or_tokens_only_does_not_pass_the_gate(name):
    forward, shape = LENGTHS[name]
    model = randomise(Named(forward, {"a": L(7, 12), "b": L(12, 4)}).eval(), 0)
    check = otfuse.verify(model, (normal(*shape),))
    assert check.graph.free
    assert check.error > 0.1


def test_a_model_of_one_example_is_kept_as_it_is_and_the_graph_says_so():
    model = randomise(Named(lambda m, x: m.b(torch.tanh(m.a(x)).view(1, 12)), {"a": L(7, 12), "b": L(12, 4)}).eval(), 0)
    graph = otfuse.trace(model, (normal(1, 7),))
    assert [(s.size, s.copies) for s in graph.free] == [(12, 1)]
    assert graph.notes == (
        "traced on one example, because several are not taken: what mixes examples with units would not be seen",
    )


BESIDE = {  # what comes out beside real numbers, and whether it leaves the units free
    "number of the largest": (lambda _, h: h.argmax(-1), False),
    "number of the largest, with its value": (lambda _, h: h.max(-1).indices, False),
    "numbers of the two largest": (lambda _, h: h.topk(2).indices, False),
    "order": (lambda _, h: h.argsort(), False),
    "signs": (lambda _, h: h > 0, False),
    "how many are positive": (lambda _, h: (h > 0).sum(-1), True),
    "class": (lambda m, h: m.b(h).argmax(-1), True),
    "complex": (lambda m, h: torch.complex(h, h), False),
    "complex, imaginary part": (lambda m, h: torch.complex(h.sum(-1, keepdim=True).expand(3, 12), h), False),
    "complex, conjugate": (lambda m, h: torch.polar(h.exp(), h).conj(), False),
    "complex classes": (lambda m, h: torch.complex(m.b(h), m.b(h)), True),
}


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("name", BESIDE)
def test_whole_and_complex_numbers_that_come_out_count(name, alone):
    beside, free = BESIDE[name]

    def forward(m, x):
        h = torch.tanh(m.a(x))
        return beside(m, h) if alone else (m.b(h), beside(m, h))

    model = randomise(Named(forward, {"a": L(7, 12), "b": L(12, 4)}).eval(), 0)
    check = otfuse.verify(model, (normal(3, 7),))
    assert [s.size for s in check.graph.free] == [12] * free
    assert check.error < 1e-8


def test_a_wrong_order_in_whole_numbers_alone_does_not_pass_the_gate():
    model = randomise(Named(lambda m, x: m.b(torch.tanh(m.a(x))).argmax(-1), {"a": L(7, 12), "b": L(12, 4)}).eval(), 0)
    x = (normal(30, 7),)
    graph = otfuse.trace(model, x)
    units = replace(graph.free[0], members=graph.free[0].members[:1])
    assert verify_graph(model, export(model, x), replace(graph, spaces=(units,))).error > 0.1


class Counting(nn.Module):
    """Counts its calls, and writes into what it is given."""

    def __init__(self, dtype):
        super().__init__()
        self.a, self.b = L(7, 8), L(8, 3)
        self.register_buffer("calls", torch.zeros((), dtype=dtype))

    def forward(self, x):
        self.calls.add_(1)
        x.mul_(1.5)
        return self.b(torch.relu(self.a(x))) * (1 + self.calls)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_the_model_and_the_inputs_are_left_as_they_were(dtype):
    model, x = randomise(Counting(dtype).eval(), 0), normal(3, 7)
    state, given = {k: v.clone() for k, v in model.state_dict().items()}, x.clone()
    assert otfuse.verify(model, (x,)).error < 1e-8
    otfuse.fuse([model, model], "otfusion-acts", data={"x": normal(9, 7).numpy()}, example_inputs=(x,))
    assert torch.equal(x, given)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_what_cannot_run_in_float64_is_told_in_a_sentence():
    def quantised(m, x):
        h = torch.fake_quantize_per_channel_affine(m.a(x), m.scale, m.zero, 1, 0, 255)
        return m.b(h) + m.c(x)

    model = Named(quantised, {"a": L(7, 8), "b": L(8, 3), "c": nn.Sequential(L(7, 200), nn.ReLU(), L(200, 3))})
    model.register_buffer("scale", torch.ones(8))
    model.register_buffer("zero", torch.zeros(8, dtype=torch.int32))
    with pytest.raises(GateError, match="cannot run in float64, so nothing can be proved of it: "):
        otfuse.verify(model, (normal(3, 7),))
