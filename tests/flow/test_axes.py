"""The algebra of axes against an oracle: what every position of an axis is made of, told one by one."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otfuse.flow.algebra.axes import Algebra, MisfitError
from otfuse.flow.algebra.positions import positions, segments

SIZES = (1, 2, 3, 4, 6, 8, 12, 24)
many = settings(max_examples=300, deadline=None)


def coordinates(algebra, axes):
    """For every position of the axes, row-major, the (leaf, index) pairs it is made of; pinned leaves left out."""
    rows = [()]
    for axis in axes:
        rows = [row + more for row in rows for more in positionwise(algebra, axis)]
    return [tuple((leaf, i) for leaf, i in row if not algebra.cell(leaf).hard) for row in rows]


def positionwise(algebra, axis):
    rows = [()]
    for atom in algebra.flat(axis):
        if algebra.is_sum(atom):
            own = [row for part in algebra.parts(atom) for row in positionwise(algebra, part)]
        else:
            own = [((atom, i),) for i in range(algebra.size((atom,)))]
        rows = [row + more for row in rows for more in own]
    return rows


def canonical(rows):
    """The same with leaves numbered in order of appearance."""
    names = {}
    return [tuple((names.setdefault(leaf, len(names)), i) for leaf, i in row) for row in rows]


def pinned(algebra, axis):
    return all(algebra.cell(leaf).hard for leaf in algebra.leaves(axis))


def factorisation(draw, size):
    sizes = []
    while size > 1:
        factor = draw(st.sampled_from([d for d in range(2, size + 1) if size % d == 0]))
        sizes.append(factor)
        size //= factor
    for _ in range(draw(st.integers(0, 1))):
        sizes.insert(draw(st.integers(0, len(sizes))), 1)
    return sizes or [1]


class Story:
    """A random sequence of operations with everything that it claims: pairs of lists of axes that are the same."""

    def __init__(self, draw):
        self.draw, self.algebra, self.claims = draw, Algebra(), []
        self.axes = [self.algebra.axis(draw(st.sampled_from(SIZES))) for _ in range(draw(st.integers(2, 4)))]
        self.sizes = [(axis, self.algebra.size(axis)) for axis in self.axes]

    def pick(self):
        return self.draw(st.sampled_from(self.axes))

    def add(self, axes, sizes):
        assert [self.algebra.size(axis) for axis in axes] == list(sizes)
        self.axes += axes
        self.sizes += zip(axes, sizes, strict=True)

    def step(self):
        getattr(self, self.draw(st.sampled_from(["view", "cut", "concat", "unify", "unify", "slice", "tie"])))()

    def view(self):
        axes = [self.pick() for _ in range(self.draw(st.integers(1, 2)))]
        total = prod(map(self.algebra.size, axes))
        if total <= 200:
            sizes = factorisation(self.draw, total)
            new = self.algebra.view(axes, sizes)
            self.add(new, sizes)
            self.claims.append((axes, new))

    def cut(self):
        axis = self.pick()
        size = self.algebra.size(axis)
        if size > 1:
            right = self.algebra.size(self.algebra.flat(axis)[1:])  # most cuts are made where they are possible
            at = self.draw(st.sampled_from([*range(right, size, right), self.draw(st.integers(1, size - 1))]))
            try:
                parts = self.algebra.cut(axis, at)
            except MisfitError:
                self.algebra.pin(axis, "misfit")
                return
            self.add(list(parts), [at, size - at])
            self.claims.append(([axis], parts))

    def slice(self):
        axis = self.pick()
        size = self.algebra.size(axis)
        start = self.draw(st.integers(0, size - 1))
        stop = self.draw(st.integers(start + 1, size))
        try:
            part = self.algebra.slice(axis, start, stop)
        except MisfitError:
            self.algebra.pin(axis, "misfit")
            return
        self.add([part], [stop - start])
        self.claims.append(([axis], (part, start, stop)))

    def concat(self):
        parts = [self.pick() for _ in range(self.draw(st.integers(2, 3)))]
        size = sum(map(self.algebra.size, parts))
        if size <= 72:
            whole = self.algebra.concat(parts)
            self.add([whole], [size])
            self.claims.append(([whole], tuple(parts)))

    def unify(self):
        x = self.pick()
        y = self.draw(st.sampled_from([a for a in self.axes if self.algebra.size(a) == self.algebra.size(x)]))
        result = self.algebra.unify(x, y)
        assert self.algebra.size(result) == self.algebra.size(x)
        self.claims.append(([x], [y]))

    def tie(self):
        """A fresh axis, refined in a way of its own, is unified with one of the story."""
        x = self.pick()
        size = self.algebra.size(x)
        y = self.algebra.axis(size)
        self.algebra.view([y], factorisation(self.draw, size))
        self.algebra.unify(y, x)
        self.add([y], [size])
        self.claims.append(([x], [y]))


def claimed(algebra, side):
    """Coordinates of one side of a claim: axes multiplied (a list), laid end to end (a tuple), or a slice of them."""
    if isinstance(side, list):
        return coordinates(algebra, side)
    return [row for part in side for row in coordinates(algebra, [part])]


@many
@given(st.data())
def test_whatever_was_related_is_the_same_position_by_position_at_the_end(data):
    story = Story(data.draw)
    for _ in range(data.draw(st.integers(1, 9))):
        story.step()
    for left, right in story.claims:
        whole = claimed(story.algebra, left)
        if len(right) == 3 and isinstance(right[1], int):
            part, start, stop = right
            assert whole[start:stop] == coordinates(story.algebra, [part])
        else:
            assert whole == claimed(story.algebra, right)
    for axis, size in story.sizes:
        assert story.algebra.size(axis) == size


@many
@given(st.data())
def test_segments_cover_every_position_once_and_agree_with_the_positions_of_units(data):
    story = Story(data.draw)
    for _ in range(data.draw(st.integers(1, 9))):
        story.step()
    for axis, size in story.sizes:
        parts, rows = segments(story.algebra, axis), positionwise(story.algebra, axis)
        assert sorted(np.concatenate([part.positions for part in parts]).tolist()) == list(range(size))
        for part in parts:
            for at, position in enumerate(part.positions):
                found = {leaf: int(index[at]) for leaf, index in part.index.items() if leaf not in part.repeated}
                assert found.items() <= dict(rows[position]).items()
                assert {leaf for leaf, _ in rows[position]} == set(part.index)
        for leaf in set(story.algebra.leaves(axis)):
            check_units(story.algebra, parts, rows, leaf)


def check_units(algebra, parts, rows, leaf):
    size = algebra.size((leaf,))
    table = positions(parts, leaf, [], size)
    holding = [p for p, row in enumerate(rows) if leaf in dict(row)]
    if table is None:  # the leaf stands twice in a product, or its units have unequal numbers of places
        assert any(leaf in part.repeated for part in parts)
        return
    assert sorted(table.ravel().tolist()) == holding
    assert table.shape[:2] == (1, size)
    for unit in range(size):
        assert all(dict(rows[p])[leaf] == unit for p in table[0, unit])
    for place in range(table.shape[2]):  # the order along the width is the same for every unit
        others = [{x: i for x, i in dict(rows[p]).items() if x != leaf} for p in table[0, :, place]]
        assert all(other == others[0] for other in others)


@many
@given(st.data())
def test_a_view_and_its_inverse_give_the_axis_back(data):
    algebra, size = Algebra(), data.draw(st.sampled_from(SIZES))
    axis = algebra.axis(size)
    for _ in range(data.draw(st.integers(0, 2))):
        algebra.view([axis], factorisation(data.draw, size))
    there = algebra.view([axis], factorisation(data.draw, size))
    (back,) = algebra.view(there, [size])
    if not pinned(algebra, axis) or size == 1:
        assert algebra.flat(back) == algebra.flat(axis)


def refined(draw, algebra, size):
    """A fresh axis, refined by a cut or a few views, possibly with a pin on one of its parts."""
    axis = algebra.axis(size)
    if size > 1 and draw(st.booleans()):
        first, _ = algebra.cut(axis, draw(st.integers(1, size - 1)))
        if draw(st.booleans()):
            algebra.pin(first, "drawn")
    elif size > 1:
        first = algebra.view([axis], factorisation(draw, size))[0]
        if draw(st.booleans()):
            algebra.pin(first, "drawn")
    return axis


@many
@given(st.data())
def test_unify_is_symmetric(data):
    drawn, outcomes, size = [], [], data.draw(st.sampled_from(SIZES))

    def noted(strategy):
        drawn.append(data.draw(strategy))
        return drawn[-1]

    for turned in (False, True):
        again = iter(list(drawn))
        algebra, draw = Algebra(), (lambda _, again=again: next(again)) if turned else noted
        x, y = (refined(draw, algebra, size) for _ in range(2))
        algebra.unify(*((y, x) if turned else (x, y)))
        outcomes.append(canonical(coordinates(algebra, [x]) + coordinates(algebra, [y])))
    assert outcomes[0] == outcomes[1]


@many
@given(st.data())
def test_unify_is_transitive_and_said_again_it_changes_nothing_but_may_pin(data):
    """Two readings of one axis, as a sum and as a product, may not be seen to be the same: then it is pinned."""
    algebra, size = Algebra(), data.draw(st.sampled_from(SIZES))
    x, y, z = (refined(data.draw, algebra, size) for _ in range(3))
    algebra.unify(x, y)
    algebra.unify(y, z)
    before = [coordinates(algebra, [axis]) for axis in (x, y, z)]
    assert before[0] == before[1] == before[2]
    for axis in (x, y, z):
        algebra.unify(axis, axis)
    assert [coordinates(algebra, [axis]) for axis in (x, y, z)] == before
    for left, right in ((x, y), (x, z), (z, y)):
        algebra.unify(left, right)
    after = [coordinates(algebra, [axis]) for axis in (x, y, z)]
    assert after[0] == after[1] == after[2]
    left = [tuple((leaf, i) for leaf, i in row if not algebra.cell(leaf).hard) for row in before[0]]
    assert after[0] == left


@many
@given(st.data())
def test_unify_is_idempotent_on_products(data):
    algebra, size = Algebra(), data.draw(st.sampled_from(SIZES))
    x, y = algebra.axis(size), algebra.axis(size)
    for axis in (x, y):
        algebra.view([axis], factorisation(data.draw, size))
    algebra.unify(x, y)
    before = coordinates(algebra, [x])
    for left, right in ((x, y), (y, x), (x, x)):
        algebra.unify(left, right)
    assert coordinates(algebra, [x]) == coordinates(algebra, [y]) == before


@many
@given(st.data())
def test_pins_are_inherited_by_whatever_an_axis_is_refined_to(data):
    algebra, size = Algebra(), data.draw(st.sampled_from(SIZES[1:]))
    axis = algebra.axis(size, pin="first")
    algebra.pin(axis, "second", soft=True)
    other = refined(data.draw, algebra, size)
    if data.draw(st.booleans()):
        algebra.unify(*data.draw(st.permutations([axis, other])))
    else:
        algebra.view([axis], factorisation(data.draw, size))
    for leaf in algebra.leaves(axis):
        cell = algebra.cell(leaf)
        assert "first" in cell.hard
        assert "second" in cell.soft


def test_a_common_refinement_of_two_sums():
    algebra = Algebra()
    x, y = algebra.axis(12), algebra.axis(12)
    algebra.cut(x, 4)
    algebra.cut(y, 6)
    algebra.unify(x, y)
    sizes = [algebra.size(part) for part in algebra.parts(algebra.flat(x)[0])]
    assert sizes == [4, 2, 6]
    assert algebra.flat(x) == algebra.flat(y)
    assert not any(algebra.cell(leaf).hard for leaf in algebra.leaves(x))


def test_a_sum_of_products_has_a_common_right_factor():
    algebra = Algebra()
    axis = algebra.concat([algebra.axis(4), algebra.axis(6)])
    outer, inner = algebra.view([axis], [5, 2])
    assert [algebra.size(part) for part in algebra.parts(algebra.flat(outer)[0])] == [2, 3]
    assert algebra.size(inner) == 2
    assert len(set(algebra.leaves(inner))) == 1


@pytest.mark.parametrize(("one", "other"), [((2, 3), (3, 2)), ((4, 6), (6, 4)), ((2, 2, 3), (3, 4))])
def test_a_misfit_pins_both_sides_and_changes_no_size(one, other):
    algebra, size = Algebra(), prod(one)
    x, y = algebra.axis(size), algebra.axis(size)
    ones, others = algebra.view([x], one), algebra.view([y], other)
    algebra.unify(x, y)
    assert pinned(algebra, x)
    assert pinned(algebra, y)
    assert algebra.size(x) == algebra.size(y) == size
    assert [algebra.size(a) for a in [*ones, *others]] == [*one, *other]


def test_two_views_that_clash_pin_the_axis_and_what_was_made_of_it():
    algebra = Algebra()
    axis, bystander = algebra.axis(24), algebra.axis(5)
    first = algebra.view([axis, bystander], (4, 6, 5))
    second = algebra.view([axis, bystander], (6, 4, 5))
    assert all(pinned(algebra, a) for a in [axis, *first[:2], *second[:2]])
    assert not pinned(algebra, bystander)
    assert second[2] == first[2] == bystander


def test_a_cut_inside_a_factor_is_refused():
    algebra = Algebra()
    axis = algebra.axis(12)
    algebra.view([axis], (3, 4))
    with pytest.raises(MisfitError, match="inside a factor of 4"):
        algebra.cut(axis, 6)
    parts = algebra.cut(axis, 8)
    assert [algebra.size(part) for part in parts] == [8, 4]
    assert coordinates(algebra, [axis]) == coordinates(algebra, parts[:1]) + coordinates(algebra, parts[1:])


def test_equal_sizes_are_never_confused_and_a_length_of_one_goes_with_anything():
    algebra = Algebra()
    x, y, one = algebra.axis(6), algebra.axis(6), algebra.axis(1)
    assert one == ()
    assert algebra.unify(one, x) == algebra.unify(x, one) == x
    assert algebra.flat(x) != algebra.flat(y)
    with pytest.raises(MisfitError, match="axes of 6 and 5"):
        algebra.unify(x, algebra.axis(5))


def test_wild_leaves_are_renamed_together_and_others_keep_their_names():
    algebra = Algebra()
    wild, tame = algebra.axis(6, wild=True), algebra.axis(4)
    first, second = algebra.fresh([wild + tame, wild]), algebra.fresh([wild + tame, wild])
    assert first[0][1:] == second[0][1:] == tame
    assert first[0][:1] == first[1]
    assert len({first[1], second[1], wild}) == 3
    algebra.view([wild], (2, 3))
    renamed = algebra.fresh([wild, wild])
    assert renamed[0] == renamed[1] != algebra.flat(wild)


@pytest.mark.parametrize(
    "tamed", [lambda a, w: a.unify(w, a.axis(6)), lambda a, w: a.cut(w, 2), lambda a, w: a.pin(w, "x")]
)
def test_wild_ends_where_an_axis_gets_an_identity(tamed):
    algebra = Algebra()
    wild = algebra.axis(6, wild=True)
    tamed(algebra, wild)
    assert algebra.fresh([wild]) == [algebra.flat(wild)]


def test_the_oracle_can_fail():
    algebra = Algebra()
    x, y = algebra.axis(6), algebra.axis(6)
    assert coordinates(algebra, [x]) != coordinates(algebra, [y])
    assert canonical(coordinates(algebra, [x])) == canonical(coordinates(algebra, [y]))
    algebra.view([x], (2, 3))
    assert canonical(coordinates(algebra, [x])) != canonical(coordinates(algebra, [y]))
