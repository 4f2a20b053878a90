"""Layer-level nodes: their order, what they read and write, which places are seen, and which places count."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional

import otfuse
from otfuse.core.graph import NodeKind
from otfuse.testing.examples import EXAMPLES
from otfuse.testing.plain import Block, PlainVit
from otfuse.testing.record import randomise
from traced import built, checked

TEXT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 36, "vocab_size": 50}
BLOCK = ["norm", "linear", "linear", "linear", "attention", "linear", "junction",
         "norm", "linear", "activation", "linear", "junction"]  # fmt: skip
LEFT = {  # stored tensors that are no piece of a node: they shift scores, or choose experts by number
    "mpnet": "relative_attention_bias",
    "t5": "relative_attention_bias",
    "swin": "relative_position_bias_table",
    "hubert": "pos_conv_embed",
    "clip": "logit_scale",
    "mixtral": ".mlp.",
    "qwen3_moe": ".mlp.",
    "deepseek_v3": ".mlp.",
    "llava_next": "image_newline",  # a stored token behind every row of an image: carried by the maps of its space
    "mllama": "vision_model",  # a table of tiles times units, added to the stream, is not followed: a note tells
}


def graph(name):
    return checked(name).graph


def kinds(found):
    return [str(node.kind) for node in found.nodes]


def made(class_name, **options):
    """A seeded model of a class, and its graph on inputs made from the config."""
    model_class = getattr(transformers, class_name)
    model = model_class(model_class.config_class(**options)).eval()
    return otfuse.trace(randomise(model, 0))


def of_kind(found, kind):
    return [node for node in found.nodes if node.kind is kind]


# -- order and readings ----------------------------------------------------------------------------------------------
def test_a_class_token_model_in_the_order_of_its_forward_pass():
    assert kinds(graph("hf_vit")) == [
        "source",
        "source",
        "source",
        "junction",
        *BLOCK,
        *BLOCK,
        "norm",
        "linear",
        "output",
    ]


def test_a_post_norm_model_in_the_order_of_its_forward_pass():
    block = [*BLOCK[1:7], "norm", *BLOCK[8:12], "norm"]
    start = ["source"] * 3 + ["junction", "norm"]
    end = ["linear", "activation", "norm", "linear", "output"]
    assert kinds(graph("bert")) == [*start, *block, *block, *end]


@pytest.mark.parametrize("name", ["hf_vit", "gpt2", "llama_gqa", "plain_vit", "bert", "t5", "bloom"])
def test_the_skip_is_the_stream_and_the_branch_a_layer(name):
    nodes = graph(name).nodes
    junctions = of_kind(graph(name), NodeKind.JUNCTION)
    stream = junctions[-1].written_spaces
    assert len(junctions) >= 4
    for node in junctions[1:]:
        skip, branch = node.reading("skip"), node.reading("branch")
        assert nodes[branch.node].kind is NodeKind.LINEAR, node.name
        assert nodes[skip.node].kind in (NodeKind.JUNCTION, NodeKind.NORM, NodeKind.SOURCE), node.name
        assert len(node.written_spaces) == 1
    assert junctions[-2].written_spaces == stream


@pytest.mark.parametrize("name", ["hf_vit", "gpt2", "llama_gqa", "plain_vit", "bert", "bloom", "mpt", "torch_cross"])
def test_attention_reads_query_key_and_value_of_the_layers_that_make_them(name):
    found, model = graph(name), built(name)[0]
    for node in of_kind(found, NodeKind.ATTENTION):
        read = [found.nodes[node.reading(role).node] for role in ("query", "key", "value")]
        assert [n.kind for n in read] == [NodeKind.LINEAR] * 3
        assert len({n.index for n in read}) == 3
        assert node.heads > 1
        assert node.size % node.heads == 0
        for role, layer in zip(("q", "k", "v"), read, strict=True):
            last = layer.name.rpartition(".")[2]
            assert last[:2] not in {f"{o}_" for o in "qkv" if o != role}, (role, last)
    assert model is not None


def test_parts_of_a_fused_projection_share_its_tensor_and_no_row():
    found = graph("gpt2")
    node = of_kind(found, NodeKind.ATTENTION)[0]
    parts = [found.nodes[node.reading(role).node].pieces[0] for role in ("query", "key", "value")]
    assert {p.tensor for p in parts} == {"transformer.h.0.attn.c_attn.weight"}
    rows = [p.writes[1] for p in parts]
    assert [r.tolist() for r in rows] == [list(range(i, i + 24)) for i in (0, 24, 48)]
    assert [p.writes[0] for p in parts] == [1, 1, 1]  # this class stores (in, out)


@pytest.mark.parametrize(
    ("class_name", "options"),
    [
        ("BertForMaskedLM", TEXT),
        ("GPT2LMHeadModel", {"n_embd": 24, "n_layer": 2, "n_head": 4, "vocab_size": 50}),
        ("LlamaForCausalLM", {**TEXT, "num_key_value_heads": 2}),
        ("GPTNeoXForCausalLM", TEXT),
        ("DistilBertForMaskedLM", {"dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 36, "vocab_size": 50}),
        ("ViTForImageClassification", {**TEXT, "image_size": 12, "patch_size": 4} | {"vocab_size": 50}),
        ("SwinForImageClassification", {"image_size": 16, "patch_size": 2, "embed_dim": 12, "depths": [2], "num_heads": [2],
                                        "window_size": 4}),
    ],
)  # fmt: skip
def test_attention_written_out_gives_the_same_nodes(class_name, options):
    one, other = (made(class_name, **options, attn_implementation=how) for how in ("sdpa", "eager"))
    assert [(n.kind, n.name, n.size, n.heads) for n in one.nodes] == [
        (n.kind, n.name, n.size, n.heads) for n in other.nodes
    ]
    for a, b in zip(one.nodes, other.nodes, strict=True):
        assert [(r.role, r.node, r.units.tolist()) for r in a.readings] == [
            (r.role, r.node, r.units.tolist()) for r in b.readings
        ], a.name


@pytest.mark.parametrize("name", [n for n in EXAMPLES if EXAMPLES[n].from_config])
def test_every_tensor_that_a_prediction_reads_is_a_piece_of_a_node(name):
    found = graph(name)
    used = {piece.tensor for node in found.nodes for piece in node.pieces}
    left = [t for t, first in found.ties.items() if t == first and t not in used and t not in found.unread]
    assert all(LEFT.get(name, "nothing") in tensor for tensor in left), left


@pytest.mark.parametrize("name", ["hf_vit", "gpt2", "llama_gqa", "t5", "plain_vit", "swin", "resnet", "clip"])
def test_positions_of_pieces_lie_inside_their_tensors_and_fit_what_is_read(name):
    found = graph(name)
    for node in found.nodes:
        for piece in node.pieces:
            if piece.writes is not None:
                axis, places = piece.writes
                assert len(places) == node.size, node.name
                assert places.max() < found.shapes[piece.tensor][axis]
            if piece.reads is not None:
                axis, places = piece.reads
                assert len(places) == len(node.readings[0].units), node.name
                assert places.max() < found.shapes[piece.tensor][axis]
        for reading in node.readings:
            assert reading.node < node.index
            assert reading.units.max() < found.nodes[reading.node].size


# -- tokens ----------------------------------------------------------------------------------------------------------
class Unfolded(nn.Module):
    """Patches cut by ``unfold``, a class token, and its row read at the end."""

    def __init__(self, layers=2):
        super().__init__()
        self.embed, self.token = nn.Linear(48, 24), nn.Parameter(torch.zeros(1, 1, 24))
        self.position = nn.Parameter(torch.zeros(1, 10, 24))
        self.blocks = nn.ModuleList(Block(24, 4, 36) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 5)

    def forward(self, images):
        patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(len(images), 9, 48)
        x = torch.cat([self.token.expand(len(images), -1, -1), self.embed(patches)], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


@pytest.mark.parametrize(
    ("found", "extra"),
    [
        (lambda: graph("hf_vit"), [0]),
        (lambda: graph("deit"), [0, 1]),
        (lambda: graph("plain_vit"), [0]),
        (lambda: made("Dinov2WithRegistersForImageClassification", hidden_size=24, num_hidden_layers=2,
                      num_attention_heads=4, image_size=12, patch_size=4, num_register_tokens=4), [0, 1, 2, 3, 4]),
        (lambda: otfuse.trace(randomise(Unfolded(), 0), (torch.randn(2, 3, 12, 12),)), [0]),
    ],
    ids=["class token", "two tokens", "patches by reshape", "registers", "patches by unfold"],
)  # fmt: skip
def test_class_like_tokens_and_the_grid_of_patches_are_told_apart(found, extra):
    seen = [n.observation.tokens for n in of_kind(found(), NodeKind.ATTENTION)]
    assert len(seen) == 2
    for tokens in seen:
        assert tokens.extra.tolist() == extra
        assert tokens.grid.tolist() == (len(extra) + np.arange(9).reshape(3, 3)).tolist()


def test_a_model_without_such_tokens_has_none():
    assert all(n.observation.tokens is None for n in of_kind(graph("siglip"), NodeKind.LINEAR))


# -- reads -----------------------------------------------------------------------------------------------------------
def reads(found, kind=NodeKind.LINEAR):
    """For every node of a kind whose value has tokens: the places that predictions read, or None for all."""
    nodes = [n for n in of_kind(found, kind) if n.observation is not None]
    return [None if n.observation.read is None else np.flatnonzero(n.observation.read).tolist() for n in nodes]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_behind_the_last_attention_only_the_class_token_is_read(layers):
    model = randomise(PlainVit(layers=layers), 0).eval()
    found = otfuse.trace(model, (torch.randn(2, 3, 12, 12),))
    assert reads(found, NodeKind.ATTENTION) == [None] * (layers - 1) + [[0]]
    last = ["query", "key", "value", "proj", "up", "down", "head"]
    inner = reads(found)[6 * (layers - 1) :]
    assert dict(zip(last, inner, strict=True)) == {
        "query": [0], "key": None, "value": None, "proj": [0], "up": [0], "down": [0], "head": None,
    }  # fmt: skip


def test_a_pooled_text_model_reads_its_first_token():
    assert reads(graph("bert_classifier"), NodeKind.ATTENTION) == [None, [0]]
    assert reads(graph("bert"), NodeKind.ATTENTION) == [None, None]


def test_a_mean_over_places_reads_all_of_them():
    assert set(map(str, reads(graph("swin")))) == {"None"}
    assert set(map(str, reads(graph("siglip")))) == {"None"}


class LastToken(nn.Module):
    """The logits of the last place of a text model that flattens batch and tokens inside."""

    def __init__(self):
        super().__init__()
        config = transformers.GPT2Config(n_embd=24, n_layer=2, n_head=4, vocab_size=50, n_positions=16)
        self.model = transformers.GPT2LMHeadModel(config)

    def forward(self, tokens):
        return self.model(tokens, use_cache=False).logits[:, -1]


def test_reads_are_known_where_batch_and_tokens_are_flattened():
    found = otfuse.trace(randomise(LastToken(), 0).eval(), (torch.arange(14).reshape(2, 7),))
    query, key, value, out, up, down = reads(found)[6:12]
    assert [query, out, up, down] == [[6]] * 4
    assert [key, value] == [None, None]
    assert all(n.observation.dims[0] > 1 for n in of_kind(found, NodeKind.LINEAR)[:-1])


# -- what is not followed --------------------------------------------------------------------------------------------
class Odd(nn.Module):
    """A small branch that no rule follows."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.head = nn.Linear(40, 60), nn.Linear(60, 40), nn.Linear(40, 5)
        self.side, self.back = nn.Linear(40, 4), nn.Linear(3, 40)

    def forward(self, x):
        x = x + self.down(functional.relu(self.up(x)))
        return self.head(x + self.back(torch.fft.rfft(self.side(x)).abs()))


def test_what_no_rule_follows_is_noted_and_the_rest_is_found():
    found = otfuse.trace(randomise(Odd(), 0), (torch.randn(3, 40),))
    assert any("fft_rfft" in note for note in found.notes)
    assert sorted(space.size for space in found.free) == [60]


class Written(nn.Module):
    """A formula of ``h[3, 6]`` between two layers."""

    def __init__(self, formula):
        super().__init__()
        self.enter, self.leave, self.formula = nn.Linear(7, 6), nn.Linear(6, 5), formula

    def forward(self, x):
        return self.leave(self.formula(self.enter(x)))


@pytest.mark.parametrize(
    ("formula", "kind"),
    [
        (lambda h: h * torch.sigmoid(h), "activation"),
        (lambda h: torch.tanh(h) * torch.sigmoid(h), "activation"),
        (lambda h: h + torch.tanh(torch.exp(h)), "activation"),
        (lambda h: h + torch.tanh(h.view(3, 2, 3).transpose(1, 2).flatten(1)), "junction"),
        (lambda h: torch.tanh(h) + torch.tanh(h.flip(1)), "junction"),
    ],
)
def test_a_formula_is_an_activation_only_where_every_unit_meets_itself(formula, kind):
    graph = otfuse.trace(Written(formula), (torch.randn(3, 7),))
    reading = next(n for n in graph.nodes if n.name == "leave").readings[0]
    assert graph.nodes[reading.node].kind.value == kind


def test_sums_within_a_layer_make_no_stream():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.up, self.down, self.leave = (
                nn.Linear(*sizes) for sizes in ((7, 6), (6, 9), (9, 6), (6, 5))
            )

        def forward(self, x):
            x = self.enter(x)
            h = self.up(x)
            return self.leave(x + self.down(h * torch.sigmoid(h) + 0.5 * torch.tanh(h)))

    found = otfuse.trace(Inner(), (torch.randn(3, 7),))
    assert {(s.kind, s.size) for s in found.spaces if s.pinned is None} == {("stream", 6), ("units", 9)}
