"""Every rule has a case of its own, which fails when the rule is broken."""

from __future__ import annotations

import functools
from collections import defaultdict

import pytest

from otfuse.errors import RuleError
from otfuse.flow.algebra.axes import Algebra
from otfuse.flow.rules.op import Op
from otfuse.flow.rules.registry import RULES, Entry, load
from otfuse.testing.rule_cases import CASES
from otfuse.testing.rules import MUTATIONS, RuleCase, broken, judge

load()
NUMBERED = [f"{i} {case.operator}" for i, case in enumerate(CASES)]
BY_RULE = defaultdict(list)
for number, entry in zip(NUMBERED, CASES, strict=True):
    BY_RULE[RULES[entry.operator].apply.__name__].append(number)
HARMLESS = {  # a rule tells the algebra something that this program or another record tells as well
    ("reduction", "uncontracted"): "the sum itself is recorded without the axis, which says the same",
    ("extreme", "uncontracted"): "the result is recorded without the axis, which says the same",
    ("number_of_extreme", "uncontracted"): "the result is recorded without the axis, which says the same",
    ("weight_norm", "uncontracted"): "the gain is recorded without the axis that is summed, which says the same",
    ("native_batch_norm", "unpinned"): "the saved statistics of inference are empty",
    ("grouped_mm", "unpinned"): "the rows that are sorted by group come from a batch, which is pinned",
    ("copy", "unwild"): "what is overwritten is a new axis either way, and takes the name of what is written",
}


@functools.cache
def case(number) -> RuleCase:
    return CASES[NUMBERED.index(number)]


@functools.cache
def program(number):
    return case(number).program()


def fails(number, mutation):
    with broken(case(number).operator, mutation):
        return judge(case(number), program(number)) is not None


def told(number):
    """What the rule tells the algebra in its case, by the mutation that would keep it from telling."""
    seen, operator = set(), case(number).operator
    entry, patch = RULES[operator], pytest.MonkeyPatch()
    axis, pin, unify, contract, choose = Algebra.axis, Algebra.pin, Algebra.unify, Op.contract, Op.choose

    def noting_axis(self, size, *, pin=None, wild=False):
        seen.update({"unpinned"} if pin and size > 1 else (), {"unwild"} if wild and size > 1 else ())
        return axis(self, size, pin=pin, wild=wild)

    def noting_pin(self, axis, reason, *, soft=False):
        seen.update({"unpinned"} if self.flat(axis) else ())
        pin(self, axis, reason, soft=soft)

    def noting_unify(self, x, y):
        seen.update({"untied"} if self.flat(x) and self.flat(y) and self.flat(x) != self.flat(y) else ())
        return unify(self, x, y)

    def noting_contract(self, inner, aligned=(), kept=()):
        seen.update({"uncontracted"} if inner else ())
        contract(self, inner, aligned, kept)

    def noting_choose(self, *arguments):
        seen.add("unchosen")
        choose(self, *arguments)

    def spy(op):
        with patch.context() as inside:
            for name, noting in (("axis", noting_axis), ("pin", noting_pin), ("unify", noting_unify)):
                inside.setattr(Algebra, name, noting)
            inside.setattr(Op, "contract", noting_contract)
            inside.setattr(Op, "choose", noting_choose)
            return entry.apply(op)

    with patch.context() as outside:
        outside.setitem(RULES, operator, Entry(spy, entry.family))
        judge(case(number), program(number))
    return seen


def test_every_rule_has_a_case():
    assert {c.operator for c in CASES} == set(RULES), "add a case, or delete the rule"


@pytest.mark.parametrize("number", NUMBERED)
def test_a_rule_frees_what_theory_frees_and_nothing_more(number):
    assert judge(case(number), program(number)) is None


@pytest.mark.parametrize("mutation", ["loosened", "unknown"])
@pytest.mark.parametrize("number", NUMBERED)
def test_a_case_fails_when_its_rule_follows_nothing(number, mutation):
    assert fails(number, mutation) != (mutation in case(number).harmless)


@pytest.mark.parametrize("rule", BY_RULE)
def test_some_case_fails_when_a_rule_forgets_to_pin_or_to_tie(rule):
    """Each thing that a rule tells the algebra is dropped in turn."""
    for mutation in sorted(set().union(*map(told, BY_RULE[rule]))):
        noticed = any(fails(number, mutation) for number in BY_RULE[rule])
        assert noticed != ((rule, mutation) in HARMLESS), f"{rule} {mutation}: a case, or a reason, is missing"


def test_a_case_without_its_operator_is_refused():
    first = CASES[0]
    with pytest.raises(RuleError, match="call the operator in its forward"):
        RuleCase("cumsum", first.example).program()


def test_the_judge_leaves_the_rules_as_they_were():
    before = dict(RULES)
    for mutation in MUTATIONS:
        fails(NUMBERED[0], mutation)
    assert before == RULES
