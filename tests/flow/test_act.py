"""Elements of groups: drawn without fixed units, acting as a group, the same in every process; the gate can fail."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from otfuse.core.space import Group, Member, Role, Space
from otfuse.errors import GateError
from otfuse.flow.derive import derive
from otfuse.flow.proof.act import Element, act, chance, draw
from otfuse.flow.proof.gate import verify_graph
from otfuse.flow.proof.trial import SpaceTrial
from otfuse.program.export import export
from otfuse.testing.examples import EXAMPLES

few = settings(max_examples=100, deadline=None)


def positions(copies, size, width, length, seed=0):
    """Places of a member, scattered over an axis of that length."""
    places = np.random.default_rng(seed).permutation(length)[: copies * size * width]
    return places.reshape(copies, size, width)


def space(*members, size, copies=1, group=Group.PERMUTATION):
    return Space("a.weight:0", "a units", "units", size, copies, group, None, members)


@pytest.fixture
def pair():
    """Four units in two copies, twice as wide on the axis of the second tensor."""
    first = Member("a.weight", 0, positions(2, 4, 1, 9), Role.PRODUCES)
    second = Member("b.weight", 1, positions(2, 4, 2, 17), Role.CONSUMES)
    weights = {"a.weight": torch.randn(9, 3), "b.weight": torch.randn(5, 17), "c.weight": torch.randn(4, 4)}
    return space(first, second, size=4, copies=2), weights


@few
@given(st.integers(2, 40), st.integers(1, 5), st.integers(0, 2**63 - 1))
def test_no_unit_stays_where_it_was(size, copies, seed):
    order = draw(space(size=size, copies=copies), seed).order
    assert order.shape == (copies, size)
    assert (np.sort(order, axis=1) == np.arange(size)).all()
    assert (order != np.arange(size)).all()


def test_a_single_unit_has_no_choice():
    assert draw(space(size=1), 0).order.tolist() == [[0]]


def test_draws_differ_by_seed_and_by_space():
    one = space(size=30)
    draws = {tuple(draw(s, seed).order.ravel()) for seed in range(3) for s in (one, replace(one, id="b.weight:1"))}
    assert len(draws) == 6


def test_a_unit_comes_from_where_the_order_says(pair):
    moved, weights = pair
    element = draw(moved, 0)
    after = act([element], weights)
    for member in moved.members:
        old, new = (w[member.tensor].movedim(member.axis, 0) for w in (weights, after))
        for copy, unit in np.ndindex(2, 4):
            source = member.positions[copy, element.order[copy, unit]]
            assert torch.equal(new[member.positions[copy, unit]], old[source])
        others = np.setdiff1d(np.arange(len(old)), member.positions)
        assert torch.equal(new[others], old[others])
    assert torch.equal(after["c.weight"], weights["c.weight"])


def test_two_elements_after_one_another_are_their_composition(pair):
    moved, weights = pair
    first, second = draw(moved, 0), draw(moved, 1)
    both = Element(moved, order=np.take_along_axis(first.order, second.order, axis=1))
    expected = act([both], weights)
    for found in (act([second], act([first], weights)), act([first, second], weights)):
        assert all(torch.equal(found[name], expected[name]) for name in weights)


def test_an_element_and_its_inverse_leave_everything_as_it_was(pair):
    moved, weights = pair
    element = draw(moved, 0)
    inverse = Element(moved, order=np.argsort(element.order, axis=1))
    back = act([element, inverse], weights)
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_the_weights_that_were_given_are_not_changed(pair):
    moved, weights = pair
    before = {name: tensor.clone() for name, tensor in weights.items()}
    act([draw(moved, 0)], weights)
    assert all(torch.equal(before[name], weights[name]) for name in weights)


def test_skip_leaves_exactly_one_member(pair):
    moved, weights = pair
    element = draw(moved, 0)
    whole = act([element], weights)
    for member in moved.members:
        found = act([element], weights, skip=member)
        for name in weights:
            assert torch.equal(found[name], weights[name] if name == member.tensor else whole[name])


def test_skip_tells_two_members_of_one_tensor_apart():
    rows, columns = (Member("a.weight", axis, positions(1, 4, 1, 4, axis), Role.PRODUCES) for axis in (0, 1))
    moved, weights = space(rows, columns, size=4), {"a.weight": torch.randn(4, 4)}
    element = draw(moved, 0)
    alone = act([element], weights, skip=columns)["a.weight"]
    index = np.arange(4)
    index[rows.positions[0, :, 0]] = rows.positions[0, element.order[0], 0]
    assert torch.equal(alone, weights["a.weight"][index])


def test_a_batched_member_moves_each_slice_by_its_own_copy():
    places = np.arange(5).reshape(1, 5, 1).repeat(3, axis=0)
    up = Member("up", 1, places, Role.PRODUCES, batch_axis=0)
    down = Member("down", 0, places, Role.CONSUMES, batch_axis=2)
    moved, weights = space(up, down, size=5, copies=3), {"up": torch.randn(3, 5, 4), "down": torch.randn(5, 4, 3)}
    element = draw(moved, 0)
    after = act([element], weights)
    for copy in range(3):
        assert torch.equal(after["up"][copy], weights["up"][copy][element.order[copy]])
        assert torch.equal(after["down"][..., copy], weights["down"][element.order[copy]][..., copy])


@few
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 2), st.integers(0, 2**32))
def test_turned_pairs_keep_their_norms_and_turn_by_their_angles(copies, size, width, seed):
    length = copies * size * width * 2 + 1
    member = Member("q", 0, positions(copies, size, width * 2, length, seed), Role.PRODUCES)
    turned = space(member, size=size, copies=copies, group=Group.ROTARY)
    weights = {"q": torch.from_numpy(np.random.default_rng(seed).standard_normal((length, 3)))}
    element = draw(turned, seed)
    assert element.order is None
    after = act([element], weights)["q"]
    pairs = member.positions.reshape(copies, size, width, 2)
    old, new = (torch.complex(x[pairs[..., 0]], x[pairs[..., 1]]) for x in (weights["q"], after))
    angles = torch.from_numpy(element.angles)[:, :, None, None]
    torch.testing.assert_close(new.abs(), old.abs(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(new, old * torch.polar(torch.ones_like(angles), angles), rtol=1e-12, atol=1e-14)
    rest = np.setdiff1d(np.arange(length), member.positions)
    assert torch.equal(after[rest], weights["q"][rest])


def test_turns_add_up():
    member = Member("q", 1, positions(2, 3, 2, 12), Role.PRODUCES)
    turned, weights = (
        space(member, size=3, copies=2, group=Group.ROTARY),
        {"q": torch.randn(4, 12, dtype=torch.float64)},
    )
    first, second = draw(turned, 0), draw(turned, 1)
    both = Element(turned, angles=first.angles + second.angles)
    torch.testing.assert_close(act([first, second], weights)["q"], act([both], weights)["q"], rtol=1e-12, atol=1e-14)


STREAM = "from otfuse.flow.proof.act import chance; print(chance(7, 'a.weight:0', 'x').integers(0, 2**62, 4).tolist())"


@pytest.mark.parametrize("salt", ["0", "1234"])
def test_chance_is_the_same_in_every_process(salt):
    told = subprocess.run(
        [sys.executable, "-c", STREAM],
        env=os.environ | {"PYTHONHASHSEED": salt},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == str(chance(7, "a.weight:0", "x").integers(0, 2**62, 4).tolist())


def test_chance_has_a_name_and_does_not_depend_on_the_order_of_calls():
    first = chance(7, "a").integers(0, 2**62)
    chance(7, "b").integers(0, 2**62)
    assert chance(7, "a").integers(0, 2**62) == first
    assert len({int(chance(seed, *path).integers(0, 2**62)) for seed in (7, 8) for path in ("a", "b", ("a", "b"))}) == 6


# -- the gate ------------------------------------------------------------------------------------------------------------
GATED = ["mlp", "llama_gqa", "mixtral"]


@functools.cache
def traced(name):
    model, inputs = EXAMPLES[name].build(0)
    program = export(model, inputs)
    return model, program, derive(program, holds=SpaceTrial(model, program))


def changed(graph, old, new):
    return replace(graph, spaces=tuple(new if s is old else s for s in graph.spaces))


def candidates(graph):
    """Spaces of several members, with a matrix of each that can be spoiled."""
    spaces = [s for s in graph.spaces if s.pinned is None and s.size > 1 and len(s.members) > 1]
    for found in spaces:
        matrices = [m for m in found.members if len(graph.shapes[m.tensor]) > 1]
        if matrices:
            yield found, matrices[-1]


@pytest.mark.parametrize("name", GATED)
def test_the_right_graph_passes(name):
    model, program, graph = traced(name)
    verify_graph(model, program, graph).require(1e-8)


@pytest.mark.parametrize("name", GATED)
def test_a_graph_without_one_of_its_members_is_refused(name):
    model, program, graph = traced(name)
    for found, member in list(candidates(graph))[:4]:
        less = replace(found, members=tuple(m for m in found.members if m is not member))
        check = verify_graph(model, program, changed(graph, found, less))
        assert check.error > 1e-6, (found.name, member.tensor)
        with pytest.raises(GateError, match="not exact"):
            check.require(1e-8)


@pytest.mark.parametrize("name", GATED)
def test_a_graph_with_shuffled_positions_is_refused(name):
    tried = 0
    model, program, graph = traced(name)
    for found, member in list(candidates(graph))[:4]:
        if found.size == 2 or found.group is Group.ROTARY:
            continue
        swapped = member.positions.copy()  # a cycle of three or more units never commutes with a swap of two
        swapped[:, [0, 1]] = swapped[:, [1, 0]]
        wrong = replace(member, positions=swapped)
        more = replace(found, members=tuple(wrong if m is member else m for m in found.members))
        check = verify_graph(model, program, changed(graph, found, more))
        tried += 1
        assert check.error > 1e-6, (found.name, member.tensor)
        with pytest.raises(GateError, match="not exact"):
            check.require(1e-8)
    assert tried > 0


def test_a_graph_that_calls_an_output_free_is_refused():
    model, program, graph = traced("mlp")
    held = next(s for s in graph.spaces if s.pinned and "output" in s.pinned)
    with pytest.raises(GateError, match="not exact"):
        verify_graph(model, program, changed(graph, held, replace(held, pinned=None, group=Group.PERMUTATION))).require(
            1e-8
        )


def test_a_gate_that_sees_nothing_is_refused():
    model, program, graph = traced("mlp")
    check = replace(verify_graph(model, program, graph), control=0.0)
    with pytest.raises(GateError, match="proves nothing"):
        check.require(1e-8)
    with pytest.raises(GateError, match="not exact"):
        replace(check, error=float("nan")).require(1e-8)
