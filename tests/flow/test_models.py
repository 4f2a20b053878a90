"""Every model of the example database: its spaces are those of theory, and the law holds for them."""

from __future__ import annotations

import functools
import re
from collections import Counter

import pytest

import otfuse
from otfuse.core.space import Group
from otfuse.testing import adversarial, order
from otfuse.testing.examples import EXAMPLES
from otfuse.testing.law import EXACT, MOVED, Bench, derangements, moves

HOSTILE = {entry.name for module in (adversarial, order) for entry in module.EXAMPLES}
MODELS = [name for name in EXAMPLES if name not in HOSTILE]
FROM_CONFIG = [name for name in MODELS if EXAMPLES[name].from_config]
KEY_BIAS = {  # a key's bias adds the same to every score of a query, and softmax cancels it
    "hf_vit": r"\.k_proj\.bias$",
    "t5": None,
    "gpt2": None,
    "llama_gqa": None,
    "plain_vit": None,
    "resnet": None,
    "albert_shared": r"\.key\.bias$",
}


@functools.cache
def built(name):
    return EXAMPLES[name].build(0)


@functools.cache
def checked(name):
    model, inputs = built(name)
    return otfuse.verify(model, inputs, seed=0)


@functools.cache
def bench(name):
    return Bench(*built(name))


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


def test_the_checker_can_fail():
    graph = checked("mlp").graph
    outputs = [s for s in graph.spaces if s.pinned]
    assert outputs
    assert bench("mlp").change(moves(outputs[-1:])) > MOVED
