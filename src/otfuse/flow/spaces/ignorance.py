"""Where missing rules cost too much: refused, with the operator to write a rule for."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from otfuse.errors import RuleError
from otfuse.flow.rules.operators import operator_name
from otfuse.flow.rules.registry import entry_of
from otfuse.program.whereabouts import where

if TYPE_CHECKING:
    from otfuse.flow.rules.facts import Facts
    from otfuse.flow.spaces.build import Draft
    from otfuse.program.export import Program

_TOO_MUCH = 0.1  # a space pinned out of ignorance may not hold more of the parameters than this


def refuse_ignorance(program: Program, facts: Facts, drafts: list[Draft]) -> None:
    """RuleError if an operator without a rule pins a space with more than a tenth of the parameters."""
    total = sum(prod(value) for name, value in program.shapes.items() if program.ties[name] == name)
    for draft in drafts:
        if not draft.soft or not facts.unknown:
            continue
        held = {member.tensor for member in draft.space.members}
        share = sum(prod(program.shapes[name]) for name in held) / max(total, 1)
        reasons = facts.algebra.cell(draft.leaf).soft
        node = next((n for n in facts.unknown if f"no rule for {operator_name(n)}" in reasons), None)
        if share > _TOO_MUCH and node is not None:
            place = f"called at {where(node)}: it would pin {draft.space.name} ({draft.space.size} units, "
            place += f"{share:.0%} of the parameters)"
            if entry_of(node) is not None:
                raise RuleError(
                    f"the flow rule for {node.target} does not follow it as it is {place}; write that step with other "
                    "operators, or extend the rule (docs/rules.md)"
                )
            raise RuleError(
                f"no flow rule for {node.target}, {place}; declare a rule with "
                f"@otfuse.flow.rules.registry.rule({operator_name(node)!r}, family=...) (docs/rules.md)"
            )
