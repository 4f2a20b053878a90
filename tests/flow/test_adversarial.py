"""Modules made to mislead: whatever is called free must obey the law, and what theory frees must be found."""

from __future__ import annotations

import functools
import re
from collections import Counter

import pytest

import otfuse
from otfuse.errors import RuleError
from otfuse.testing import adversarial, order
from otfuse.testing.examples import EXAMPLES
from otfuse.testing.law import EXACT, Bench, moves

ENTRIES = {entry.name: entry for module in (adversarial, order) for entry in module.EXAMPLES}
REFUSED = [name for name, entry in ENTRIES.items() if entry.refused]
REFUSAL = r"no flow rule for aten\.\S+, called at \w+\.py:\d+: .*rule"
TRACED = [name for name in ENTRIES if name not in REFUSED]


@functools.cache
def checked(name):
    """The gate's answer, or the refusal of an example for which no list of spaces is fixed."""
    try:
        return otfuse.verify(*EXAMPLES[name].build(0), seed=0)
    except RuleError as error:
        if ENTRIES[name].spaces is not None:
            raise
        return error


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_free_obeys_the_law(name, seed):
    check = checked(name)
    if isinstance(check, RuleError):
        assert re.search(REFUSAL, str(check))
        return
    assert Bench(*EXAMPLES[name].build(0), seed).change(moves(check.graph.free, seed)) < EXACT
    assert check.error < 1e-8


@pytest.mark.parametrize("name", [n for n in TRACED if ENTRIES[n].spaces is not None])
def test_what_theory_frees_is_found(name):
    assert Counter((s.size, s.copies) for s in checked(name).graph.free) == ENTRIES[name].expected


@pytest.mark.parametrize("name", REFUSED)
def test_ignorance_of_much_is_refused_with_operator_place_and_remedy(name):
    with pytest.raises(RuleError, match=REFUSAL):
        otfuse.trace(*EXAMPLES[name].build(0))
