"""Every model of the example database: its spaces are those of theory, and the law holds for them."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

import otfuse
from otfuse.core.graph import NodeKind
from otfuse.core.space import Group, Role
from otfuse.testing import adversarial, order
from otfuse.testing.examples import EXAMPLES
from otfuse.testing.law import EXACT, MOVED, derangements, moves
from traced import bench, built, checked

HOSTILE = {entry.name for module in (adversarial, order) for entry in module.EXAMPLES}
MODELS = [name for name in EXAMPLES if name not in HOSTILE]
FROM_CONFIG = [  # one of every kind of stream, norm, attention and mixture; what images and sounds need is tried in test_media
    "hf_vit", "dinov2", "swin", "hf_resnet", "hubert", "clip", "bert", "albert_shared", "gpt2", "bloom", "gptj_interleaved",
    "neox_perhead_fused", "llama_gqa", "phi3_fused", "gemma", "mixtral", "t5", "whisper",
]  # fmt: skip
KEY_BIAS = {  # a key's bias adds the same to every score of a query, and softmax cancels it
    "hf_vit": r"\.k_proj\.bias$",
    "t5": None,
    "gpt2": None,
    "llama_gqa": None,
    "plain_vit": None,
    "resnet": None,
    "albert_shared": r"\.key\.bias$",
}


def found(spaces):
    return Counter((space.size, space.copies) for space in spaces)


@pytest.mark.parametrize("name", MODELS)
def test_spaces_are_those_of_theory(name):
    graph = checked(name).graph
    assert found(graph.free) == EXAMPLES[name].expected
    assert found(s for s in graph.spaces if s.group is Group.ROTARY) == EXAMPLES[name].expected_rotary


@pytest.mark.parametrize("name", MODELS)
def test_gate_is_passed_and_its_control_fails(name):
    check = checked(name)
    assert check.error < 1e-8
    assert check.control > 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_law_holds_for_all_spaces_at_once(name):
    graph = checked(name).graph
    assert graph.free, "without a free space this proves nothing"
    assert bench(name).change(moves(graph.free)) < EXACT


@pytest.mark.parametrize("name", MODELS)
def test_every_space_alone_moves_something_and_changes_nothing(name):
    graph, seat = checked(name).graph, bench(name)
    for space in graph.free if len(graph.free) < 12 else graph.free[::3]:
        assert seat.change(moves([space])) < EXACT, space.name
        first = space.members[0]
        assert seat.change([((first,), derangements(space))]) > 0 or len(space.members) > 1, space.name


@pytest.mark.parametrize("name", FROM_CONFIG)
def test_ids_do_not_depend_on_the_weights_or_on_who_made_the_inputs(name):
    model, _ = EXAMPLES[name].build(1)
    again = otfuse.trace(model)
    assert [s.id for s in again.spaces] == [s.id for s in checked(name).graph.spaces]
    assert found(again.free) == found(checked(name).graph.free)


@pytest.mark.parametrize("name", KEY_BIAS)
def test_leaving_out_any_member_changes_the_outputs(name):
    seat, dead = bench(name), KEY_BIAS[name]
    for space in checked(name).graph.free:
        move = derangements(space)
        for member in space.members:
            rest = tuple(m for m in space.members if m is not member)
            if not rest:
                continue
            change = seat.change([(rest, move)])
            if dead and re.search(dead, member.tensor):
                assert change < EXACT, f"{member.tensor} should not matter to {space.name}"
            else:
                assert change > MOVED, f"{member.tensor} axis {member.axis} is no true member of {space.name}"


@pytest.mark.parametrize("name", ["hf_vit", "t5", "llama_gqa", "swin", "mixtral"])
def test_no_space_is_two_that_could_move_apart(name):
    """Members of one layer alone cannot move: a space that spans layers is truly one."""
    seat, tried = bench(name), 0
    for space in checked(name).graph.free:
        layers = {m: re.findall(r"\.(\d+)\.", m.tensor)[:1] for m in space.members}
        for layer in {tuple(found) for found in layers.values()}:
            part = tuple(m for m in space.members if tuple(layers[m]) == layer)
            if len(part) < len(space.members):
                tried += 1
                assert seat.change([(part, derangements(space))]) > MOVED, (space.name, layer)
    assert tried > 1


@pytest.mark.parametrize("name", ["hf_vit", "resnet", "swin", "bloom", "mpt", "phi3_fused", "mixer", "codegen"])
def test_nothing_is_pinned_that_could_move(name):
    """Pinned for another reason than being an input, an output or a row of a table: moving it alone must show."""
    seat = bench(name)
    for space in checked(name).graph.spaces:
        separate = all(m.positions.shape[:2] == (space.copies, space.size) for m in space.members)
        given = any(word in (space.pinned or "") for word in ("input", "output", "lookup"))
        if space.pinned and separate and not given:
            assert seat.change(moves([space])) > MOVED, f"{space.name} is pinned ({space.pinned}) but free"


def truth(module, leaf):
    """Role of axis 0 and axis 1 of a module's own tensor, from what its class is known to compute."""
    kind = type(module).__name__
    if leaf == "bias":
        return [Role.PRODUCES]
    if (
        isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.Conv1d)
        and module.__dict__.get("groups", 1) == 1
    ):
        return [Role.PRODUCES, Role.CONSUMES]
    if kind == "Conv1D":
        return [Role.CONSUMES, Role.PRODUCES]
    if isinstance(module, torch.nn.Embedding):
        return [None, Role.PRODUCES]
    return [Role.SCALES] if "Norm" in kind and leaf == "weight" else [None, None]


@pytest.mark.parametrize("name", MODELS)
def test_roles_are_what_the_modules_compute(name):
    model, graph, seen = built(name)[0], checked(name).graph, 0
    tied = {first for other, first in graph.ties.items() if other != first}
    for space in graph.free:
        for member in space.members:
            owner, _, leaf = member.tensor.rpartition(".")
            roles = truth(model.get_submodule(owner), leaf)
            if member.tensor not in tied and member.axis < len(roles) and roles[member.axis] is not None:
                seen += 1
                assert member.role is roles[member.axis], f"{member.tensor} axis {member.axis}: {member.role}"
    assert seen > 1


@pytest.mark.parametrize(
    "name", ["hf_vit", "bert", "gpt2", "llama_gqa", "t5", "mixtral", "plain_vit", "resnet", "modernbert"]
)
def test_a_linear_node_writes_spaces_of_its_own_tensors(name):
    graph, seen = checked(name).graph, 0
    for node in graph.nodes:
        if node.kind is NodeKind.LINEAR:
            own = {piece.tensor for piece in node.pieces if piece.writes}
            for space in map(graph.space, node.written_spaces):
                seen += 1
                assert own & {member.tensor for member in space.members}, f"{node.name} cannot write {space.id}"
    assert seen > 1


@pytest.mark.parametrize("name", ["hf_vit", "bert", "gpt2", "llama_gqa", "t5", "plain_vit", "vit_bert"])
def test_streams_and_heads_are_called_so(name):
    kinds = Counter(space.kind for space in checked(name).graph.free)
    assert kinds["stream"] >= 1
    assert kinds["heads"] >= 2
    assert kinds["value-output"] >= 2


def test_the_checker_can_fail():
    graph = checked("mlp").graph
    outputs = [s for s in graph.spaces if s.pinned]
    assert outputs
    assert bench("mlp").change(moves(outputs[-1:])) > MOVED
