"""Heads that come apart for norms of their own, and what is said where a map does not fit a tensor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from align_copies import case, fuse
from otfuse.align.carry import Carrier, Claims
from otfuse.align.maps import UnitMap
from otfuse.align.pair import Pair
from otfuse.core.graph import NodeKind
from otfuse.testing.examples import example
from otfuse.testing.record import randomise

ROUNDING = 2e-6


class Apart(nn.Module):
    """Attention in which every head of query and key has a norm of its own; some units of a head have fixed gains."""

    def __init__(self, *, stacked):
        super().__init__()
        self.stacked = stacked
        self.embed, self.out = nn.Linear(5, 12), nn.Linear(12, 4)
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in range(4))
        self.register_buffer("turn", torch.tensor([0.5, 2.0]), persistent=False)

    def _normed(self, x, norms):
        if self.stacked:
            x = torch.stack([norm(head) for norm, head in zip(norms, x.unbind(1), strict=True)], dim=1)
        else:
            x = torch.cat([norm(head) for norm, head in zip(norms, x.split(1, dim=1), strict=True)], dim=1)
        return torch.cat([x[..., :2] * self.turn, x[..., 2:]], dim=-1)

    def forward(self, x):
        x = self.embed(x)
        q, k, v = (f(x).view(len(x), -1, 2, 6).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = self._normed(q, self.norms[:2]), self._normed(k, self.norms[2:])
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(x + self.o(mixed.transpose(1, 2).reshape(x.shape)))


@pytest.fixture(scope="module", params=[False, True], ids=["cat", "stack"])
def apart(request):
    model = randomise(Apart(stacked=request.param), 0).eval()
    return case(model, (torch.randn(16, 7, 5, generator=torch.Generator().manual_seed(0)),))


def test_heads_apart_are_one_value_again(apart):
    nodes = apart.side.graph.nodes
    query = next(n for n in nodes if n.kind is NodeKind.ATTENTION).reading("query")
    assert (nodes[query.node].kind, nodes[query.node].size) == (NodeKind.CONCAT, 12)
    held = {p.tensor for n in nodes for p in n.pieces if p.writes is not None and len(p.writes[1])}
    assert held == set(apart.side.graph.ties)


@pytest.mark.parametrize("features", ["activations", "weights"])
def test_a_permuted_copy_with_heads_apart_gives_the_model(apart, features):
    copy = apart.permuted(None)
    found = fuse(apart.side, [copy], apart.data, features=features)
    assert apart.change(copy.weights) < ROUNDING
    assert any(not torch.equal(copy.weights[n], t) for n, t in apart.side.weights.items() if n.startswith("norms."))
    assert apart.change(found.weights) < ROUNDING
    assert not found.alignments[0].notes


def test_a_map_of_other_units_is_not_used_for_a_tensor_and_told():
    experts = case(*example("mixtral").build(0)).side
    space = next(s for s in experts.graph.free if s.kind == "stream")
    tensor = next(m.tensor for m in space.members if "experts" in m.tensor)
    maps = [UnitMap.identity(n, n) for n in (space.size, space.size + 2)]
    claims = Claims(experts.graph, frozenset())
    assert tensor in claims.unclaimed
    carriers = [Carrier(Pair(experts, experts), claims, lambda _: None, lambda _: None) for _ in maps]
    found = [c.by_spaces(tensor, {space.id: m}) for c, m in zip(carriers, maps, strict=True)]
    assert [bool(carries) for carries in found] == [True, False]
    said = f"{tensor}: no map of {space.name} was found, and it is taken in the source's own order"
    assert [said in c.notes for c in carriers] == [False, True]
