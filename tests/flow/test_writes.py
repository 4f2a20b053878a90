"""Writes into memory that several names share: followed where nobody else reads, refused where nothing tells of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import otfuse
from named import Named, into
from otfuse.errors import RuleError, TraceError
from otfuse.testing.record import normal, randomise

L = nn.Linear


def in_bfloat16(zeros, h):
    with torch.autocast("cpu", torch.bfloat16):
        zeros[:, :4].add_(h[:, 4:])


MEMORY = {  # operators whose results are the memory of their operands, although PyTorch's schema says that they are new
    "dropout": lambda z, h: functional.dropout(z, 0.1, training=False).add_(h),
    "einsum": lambda z, h: torch.einsum("bi->ib", z).add_(h.t()),
    "unsafe_chunk": lambda z, h: torch.unsafe_chunk(z, 2, -1)[0].add_(h[:, :4]),
    "unsafe_split": lambda z, h: torch.unsafe_split(z, 4, -1)[1].add_(h[:, :4]),
}  # fmt: skip


@pytest.mark.parametrize("name", MEMORY)
def test_writing_into_memory_that_nothing_tells_of_is_refused(name):
    message = rf"writes into what {name} gives \(add_ at named.py:\d+\), and reads it again as what new_zeros gives"
    with pytest.raises(TraceError, match=message):
        otfuse.trace(Named(*into(MEMORY[name])), (normal(3, 7),))


@torch.library.custom_op("otfuse_tests::add_into", mutates_args=("z",))
def add_into(z: torch.Tensor, h: torch.Tensor) -> None:
    z.add_(h)


UNMENDED = {  # what functionalization makes of it has no rule, or it cannot make it plain
    "_foreach_add": (lambda z, h: torch._foreach_add_([z], [h]), RuleError),
    "instance_norm": (lambda z, h: functional.instance_norm(h.t()[None], z[0], z[1] + 1, use_input_stats=True), TraceError),
    "auto_functionalized": (add_into, RuleError),
    "wrap_with_autocast": (in_bfloat16, TraceError),
}  # fmt: skip


@pytest.mark.parametrize("name", UNMENDED)
def test_a_write_that_is_not_followed_is_refused_by_its_name(name):
    write, error = UNMENDED[name]
    with pytest.raises(error, match=name):
        otfuse.trace(Named(*into(write)), (normal(3, 7),))


def test_two_buffers_of_one_memory_are_refused_when_one_is_written():
    def forward(m, x):
        h = m.a(x)
        m.part.add_(h.mean(0)[:4])
        return m.b(torch.relu(h + m.whole))

    model = Named(forward, {"a": L(7, 8), "b": L(8, 3)})
    model.register_buffer("whole", torch.zeros(8))
    model.register_buffer("part", model.whole[:4])
    with pytest.raises(TraceError, match=r"part gives .* reads it again as what .*whole gives"):
        otfuse.trace(model, (normal(3, 7),))


def test_writing_into_what_nobody_else_reads_is_followed():
    def forward(m, x):
        h = functional.dropout(m.a(x), 0.1, training=False)
        h += torch.relu(m.c(x))
        return m.b(h)

    graph = otfuse.trace(
        randomise(Named(forward, {"a": L(7, 8), "b": L(8, 3), "c": L(7, 8)}).eval(), 0), (normal(3, 7),)
    )
    assert [(s.size, len(s.members)) for s in graph.free] == [(8, 5)]
