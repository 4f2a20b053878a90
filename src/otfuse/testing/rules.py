"""A case of its own for every operator rule: a tiny module whose free spaces are found only if that rule is right.

``judge`` says what is wrong with a case under the rules as they stand: a rule that ties too little breaks the law, one
that ties or pins too much loses a space that theory expects. Write a :class:`RuleCase` for a rule of your own, and see
it fail with the rule broken (``broken`` with one of ``MUTATIONS``) before you trust it.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

from otfuse.errors import RuleError
from otfuse.flow.algebra.axes import Algebra
from otfuse.flow.algebra.value import Value
from otfuse.flow.derive import derive
from otfuse.flow.proof.trial import SpaceTrial
from otfuse.flow.rules.op import Op
from otfuse.flow.rules.operators import operator_name
from otfuse.flow.rules.registry import RULES, UNKNOWN, Entry, load
from otfuse.program.export import Program, export
from otfuse.testing.law import EXACT, Bench, moves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otfuse.flow.algebra.axes import Axis
    from otfuse.flow.rules.registry import Rule
    from otfuse.testing.record import Example

BROKEN = (RuleError, RuntimeError, TypeError, IndexError, ValueError)  # what a broken rule may lead to


@dataclass(frozen=True, slots=True)
class RuleCase:
    """A module in which the rule of ``operator`` (its name in the registry) decides which spaces are free.

    ``harmless`` maps a mutation (a key of ``MUTATIONS``) to the reason why it cannot change anything here.
    """

    operator: str
    example: Example
    harmless: dict[str, str] = field(default_factory=dict)

    def program(self) -> Program:
        """The module, traced; RuleError if the operator is not in it."""
        program = export(*self.example.build(0))
        load()
        names = {operator_name(node) for node in program.live() if node.op == "call_function"}
        untagged = self.operator == "pointwise" and not names <= RULES.keys()
        if self.operator not in names and not untagged:
            raise RuleError(
                f"the case of {self.operator!r} holds {sorted(names)} only; call the operator in its forward"
            )
        return program


def judge(case: RuleCase, program: Program | None = None) -> str | None:
    """What is wrong under the rules as they stand, in one line; None if all is well."""
    model, inputs = case.example.build(0)
    program = program or case.program()
    try:
        graph = derive(program, holds=SpaceTrial(model, program))
    except BROKEN as error:
        return f"{type(error).__name__}: {error}"
    found = Counter((space.size, space.copies) for space in graph.free)
    if found != case.example.expected:
        return f"free are {dict(found)}, theory frees {dict(case.example.expected)}"
    change = Bench(model, inputs).change(moves(graph.free))
    return None if change < EXACT else f"moving what is called free changes the outputs by {change:.1e}"


# -- breaking ------------------------------------------------------------------------------------------------------------
def loosened(_: Rule, op: Op) -> Any:
    """The result has nothing to do with the arguments."""
    results = [Value(tuple(op.algebra.axis(n) for n in shape), derived=True) for shape in op.shapes]
    return results if isinstance(op.node.meta.get("val"), (list, tuple)) else results[0]


def unknown(_: Rule, __: Op) -> Any:
    """Nothing is followed, so that everything is pinned."""
    return UNKNOWN


def unpinned(rule: Rule, op: Op) -> Any:
    """The rule forgets to pin."""
    make = Algebra.axis

    def axis(self: Algebra, size: int, *, pin: str | None = None, wild: bool = False) -> Axis:  # noqa: ARG001
        return make(self, size, wild=wild)

    with mock.patch.object(Algebra, "pin"), mock.patch.object(Algebra, "axis", axis):
        return rule(op)


def untied(rule: Rule, op: Op) -> Any:
    """The rule forgets to unify."""

    def unify(_: Algebra, x: Axis, y: Axis) -> Axis:
        return x or y

    with mock.patch.object(Algebra, "unify", unify):
        return rule(op)


def uncontracted(rule: Rule, op: Op) -> Any:
    """The rule forgets to tell what it sums over."""
    with mock.patch.object(Op, "contract"):
        return rule(op)


def unchosen(rule: Rule, op: Op) -> Any:
    """The rule forgets that the places of its result tell what was chosen."""
    with mock.patch.object(Op, "choose"):
        return rule(op)


def unwild(rule: Rule, op: Op) -> Any:
    """The rule forgets that its result is constant along an axis."""
    make = Algebra.axis

    def axis(self: Algebra, size: int, *, pin: str | None = None, wild: bool = False) -> Axis:  # noqa: ARG001
        return make(self, size, pin=pin)

    with mock.patch.object(Algebra, "axis", axis):
        return rule(op)


MUTATIONS: dict[str, Callable[[Rule, Op], Any]] = {
    function.__name__: function for function in (loosened, unknown, unpinned, untied, uncontracted, unchosen, unwild)
}


@contextlib.contextmanager
def broken(operator: str, mutation: str) -> Iterator[None]:
    """Inside, the rule of the operator is broken in that way (a key of ``MUTATIONS``)."""
    load()
    entry, mutant = RULES[operator], MUTATIONS[mutation]
    RULES[operator] = Entry(lambda op: mutant(entry.apply, op), entry.family)
    try:
        yield
    finally:
        RULES[operator] = entry
