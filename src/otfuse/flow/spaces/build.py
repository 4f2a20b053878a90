"""From the solved algebra to spaces: one for every leaf that a live stored tensor holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from otfuse.core.space import Group, Member, Role, Space
from otfuse.flow.algebra.positions import Segment, positions, segments
from otfuse.flow.spaces.dependence import dependencies
from otfuse.flow.spaces.products import meetings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otfuse.flow.algebra.axes import Atom
    from otfuse.flow.follow.reach import Reach
    from otfuse.flow.rules.facts import Facts

_KINDS = ("query-key", "value-output", "heads", "experts", "channels")


Holds: TypeAlias = "Callable[[Sequence[Sequence[Space]]], Sequence[bool | None]]"


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """A space before it has a name: its leaf, and whether its pins are ignorance only (``soft``)."""

    leaf: int
    space: Space
    soft: bool


class SpaceBuilder:
    """Turns leaves into spaces."""

    def __init__(self, facts: Facts, reach: Reach, holds: Holds) -> None:
        self._facts, self._algebra, self._reach, self._holds = facts, facts.algebra, reach, holds
        self._meetings = meetings(facts)
        self._segments: dict[tuple[str, int], list[Segment]] = {}
        self._holders: dict[int, list[tuple[str, int]]] = {}
        for name, value in facts.stored.items():
            if name not in facts.live:  # an unused parameter is no space
                continue
            for dim, axis in enumerate(value.axes):
                self._segments[name, dim] = segments(self._algebra, axis)
                for leaf in dict.fromkeys(self._algebra.leaves(axis)):
                    self._holders.setdefault(leaf, []).append((name, dim))
        self._depends = dependencies(facts)
        self._depends_order = list(self._depends)

    def build(self) -> list[Draft]:
        """All spaces in the order in which their first member is stored; what has to be tried is tried together."""
        turned = {leaf: self._rotary(leaf) for leaf in self._holders if self._may_turn(leaf)}
        plain = {leaf: self._draft(leaf) for leaf in self._holders if leaf not in turned}
        trials = {leaf: [d.space for d in found if d.space.group is Group.ROTARY] for leaf, found in turned.items()}
        trials |= {leaf: [_freed(draft).space] for leaf, draft in plain.items() if draft.soft}
        answers = dict(zip(trials, self._holds(list(trials.values())), strict=True))
        drafts = [_freed(draft) if draft.soft and answers[leaf] else draft for leaf, draft in plain.items()]
        for leaf, found in turned.items():
            held = answers[leaf] or not trials[leaf] or (answers[leaf] is None and self._told(leaf))
            drafts += found if held else [self._draft(leaf)]
        stored = {name: i for i, name in enumerate(self._facts.stored)}
        drafts.sort(key=lambda d: _place(d.space, stored))
        counts: Counter[str] = Counter()
        return [self._named(draft, counts) for draft in drafts]

    def _may_turn(self, leaf: Atom) -> bool:
        hard = self._algebra.cell(leaf).hard
        return bool(hard) and hard <= {"constant", "opaque"} and self._is_rotary(leaf)

    def _told(self, leaf: Atom) -> bool:
        """Whether the program itself says that pairs are turned: attention is one operator there."""
        cell = self._algebra.cell(leaf)
        return cell.hard == {"constant"} and "query-key" in cell.tags

    # -- one space ---------------------------------------------------------------------------------------------------
    def _draft(self, leaf: Atom) -> Draft:
        cell = self._algebra.cell(leaf)
        inside, batch = self._copies(leaf) if not cell.hard else ([], None)
        members = self._members(leaf, inside, batch)
        reasons = set(cell.hard)
        if not reasons and self._unread(leaf):
            reasons.add("unread")
        if members is None:  # not expressible as positions: keep it in place
            reasons.add("no separate positions")
            members, inside, batch = self._places(leaf), [], None
        pinned = ", ".join(sorted(reasons)) or ", ".join(sorted(cell.soft)) or None
        group = Group.PINNED if pinned else Group.PERMUTATION
        copies = self._algebra.cell(batch).size if batch is not None else 1
        for dep in inside:
            copies *= self._algebra.cell(dep).size
        space = Space("", "", self._kind(leaf), cell.size, copies, group, pinned, tuple(members))
        return Draft(leaf, space, soft=bool(cell.soft) and not reasons)

    def _unread(self, leaf: Atom) -> bool:
        """Whether no output reads any of its positions, so that nothing can be known of them."""
        for name, dim in self._holders[leaf]:
            unread = self._reach.unread(name, dim)
            if unread is None or not all(
                unread[p.positions].all() for p in self._segments[name, dim] if leaf in p.index
            ):
                return False
        return True

    # -- rotary pairs ------------------------------------------------------------------------------------------------
    def _rotary(self, leaf: Atom) -> list[Draft]:
        """One space per attention: all read one table of angles, but a turn is free in every head of every layer.

        Attentions are told apart by their heads, and by where queries meet keys: two members belong together if they
        share a factor beside the pairs, or a place where they meet.
        """
        groups: list[tuple[set[Any], list[tuple[str, int]]]] = []
        for holder in self._holders[leaf]:
            factors = {x for part in self._segments[holder] if leaf in part.index for x in part.index} - {leaf}
            beside: set[Any] = {x for x in factors if not self._algebra.cell(x).hard}
            beside |= {node for node, names in self._meetings.items() if holder[0] in names}
            touching = [group for group in groups if group[0] & beside or not beside or not group[0]]
            groups = [group for group in groups if group not in touching]
            groups.append((beside.union(*(g[0] for g in touching)), [h for g in touching for h in g[1]] + [holder]))
        return [self._rotary_draft(leaf, holders) for _, holders in groups]

    def _rotary_draft(self, leaf: Atom, holders: list[tuple[str, int]]) -> Draft:
        size = self._algebra.cell(leaf).size
        common = [x for x in self._depends_order if all(self._stands_inside(leaf, x, h) for h in holders)]
        counted = [(x, self._algebra.cell(x).size) for x in common if x != leaf and not self._algebra.cell(x).hard]
        members = []
        for name, dim in holders:
            found = positions(self._segments[name, dim], leaf, counted, size)
            if found is None:
                return self._draft(leaf)
            members.append(Member(name, dim, found, self._facts.role(name, dim)))
        copies = int(np.prod([n for _, n in counted])) if counted else 1
        return Draft(leaf, Space("", "", "query-key", size, copies, Group.ROTARY, None, tuple(members)), soft=False)

    def _copies(self, leaf: Atom) -> tuple[list[Atom], Atom | None]:
        """The leaves that count the copies: all on the axis of the leaf, or one on an axis of its own (batched).

        What a member cannot express is dropped: fewer copies means one common permutation, which is sound.
        """
        inside = list(self._depends.get(leaf, ()))
        batch = [dep for dep in inside if any(not self._stands_inside(leaf, dep, h) for h in self._holders[leaf])]
        if not batch:
            return inside, None
        dep = batch[0]
        fits = all(
            self._stands_inside(leaf, dep, h) or self._batch_axis(dep, h) is not None for h in self._holders[leaf]
        )
        return ([], dep) if fits else ([dep for dep in inside if dep not in batch], None)

    def _stands_inside(self, leaf: Atom, dep: Atom, holder: tuple[str, int]) -> bool:
        return all(dep in part.index for part in self._segments[holder] if leaf in part.index)

    def _batch_axis(self, dep: Atom, holder: tuple[str, int]) -> int | None:
        name, own = holder
        axes = self._facts.stored[name].axes
        found = [d for d, axis in enumerate(axes) if d != own and self._algebra.flat(axis) == (dep,)]
        return found[0] if found else None

    def _members(self, leaf: Atom, inside: list[Atom], batch: Atom | None) -> list[Member] | None:
        size, members = self._algebra.cell(leaf).size, list[Member]()
        for name, dim in self._holders[leaf]:
            batched = batch is not None and not self._stands_inside(leaf, batch, (name, dim))
            counted = inside if batch is None else [] if batched else [batch]
            found = positions(
                self._segments[name, dim], leaf, [(dep, self._algebra.cell(dep).size) for dep in counted], size
            )
            if found is None:
                return None
            axis = None
            if batch is not None and batched:
                axis = self._batch_axis(batch, (name, dim))
                found = found.repeat(self._algebra.cell(batch).size, axis=0)
            members.append(Member(name, dim, found, self._facts.role(name, dim), axis))
        return members

    def _places(self, leaf: Atom) -> list[Member]:
        """Members of a space that cannot move: every position that the leaf has a part in, as one unit's width."""
        members = []
        for name, dim in self._holders[leaf]:
            found = [part.positions for part in self._segments[name, dim] if leaf in part.index]
            table = sum((list(p) for p in found), list[int]())
            members.append(Member(name, dim, _column(table), self._facts.role(name, dim)))
        return members

    def _is_rotary(self, leaf: Atom) -> bool:
        """Pairs that a table of angles may turn: twice in a sum (half style) or times a pinned factor of two."""
        return all(self._facts.role(*h) is Role.PRODUCES and self._paired(leaf, h) for h in self._holders[leaf])

    def _paired(self, leaf: Atom, holder: tuple[str, int]) -> bool:
        parts = [p for p in self._segments[holder] if leaf in p.index]
        inner = parts[0].index
        twos = [
            x for x in inner if self._algebra.cell(x).size == 2 and self._algebra.cell(x).hard <= {"strided", "stack"}
        ]
        twos = [x for x in twos if self._algebra.cell(x).hard]
        return len(twos) == 1 or (not twos and len(parts) % 2 == 0)

    # -- names -------------------------------------------------------------------------------------------------------
    def _kind(self, leaf: Atom) -> str:
        tags = self._algebra.cell(leaf).tags
        depends = self._depends.get(leaf, ())
        if "heads" in tags and any("heads" in self._algebra.cell(d).tags for d in depends):
            return "queries"
        return next((kind for kind in _KINDS if kind in tags), "units")

    def _named(self, draft: Draft, counts: Counter[str]) -> Draft:
        space = draft.space
        first = next((m for m in space.members if m.role is Role.PRODUCES), space.members[0])
        base = f"{first.tensor}:{first.axis}:{space.kind}"  # the kind, because a factor of size one has no space
        counts[base] += 1
        ident = base if counts[base] == 1 else f"{base}#{counts[base]}"
        name = f"{first.tensor.rpartition('.')[0] or first.tensor} {space.kind}"
        named = Space(ident, name, space.kind, space.size, space.copies, space.group, space.pinned, space.members)
        return Draft(draft.leaf, named, draft.soft)


def _freed(draft: Draft) -> Draft:
    return Draft(draft.leaf, replace(draft.space, group=Group.PERMUTATION, pinned=None), soft=False)


def _column(table: list[int]) -> Any:
    return np.asarray(table, dtype=np.int64).reshape(1, 1, -1)


def _place(space: Space, stored: dict[str, int]) -> tuple[int, int, int]:
    """First member, and on one axis the outer factors first (their units are wider)."""
    first = min(space.members, key=lambda m: (stored[m.tensor], m.axis))
    return stored[first.tensor], first.axis, -first.positions.shape[2]
