"""The algebra of axes: which factors an axis is made of, and which factors are the same units.

An **axis** is a tuple of atoms, a row-major product; a factor of size one does not exist, so an axis of length one is
the empty tuple and unifies with anything (that is broadcasting). An **atom** is a symbol of a union-find. Its root is a
*leaf*, or is refined to a *product* (one axis) or to a *sum* (axes laid end to end). Refinement is global and monotone:
whoever holds the atom sees it at the next reading, so a view in layer 12 splits the weight of layer 1. Identity is never
decided by size: only an operator may unify. What does not line up is pinned: coverage is lost, never a wrong map.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Atom: TypeAlias = "int"
Axis: TypeAlias = "tuple[Atom, ...]"


class MisfitError(Exception):
    """Factors do not line up; the caller pins what it was about to relate."""


@dataclass(slots=True)
class _Cell:
    """What is known of one atom. ``hard`` pins are evidence, ``soft`` pins are ignorance."""

    size: int
    parent: Atom
    form: Literal["leaf", "product", "sum"] = "leaf"
    parts: tuple[Axis, ...] = ()  # one axis for a product, several for a sum
    hard: set[str] = field(default_factory=set)
    soft: set[str] = field(default_factory=set)
    tags: set[str] = field(default_factory=set)
    wild: bool = False  # constant along this axis: every use gets a fresh copy (let-polymorphism)


class Algebra:
    """All atoms of one derivation."""

    def __init__(self) -> None:
        self._cells: list[_Cell] = []

    # -- making and reading ------------------------------------------------------------------------------------------
    def atom(self, size: int, *, pin: str | None = None, wild: bool = False) -> Atom:
        """A fresh leaf."""
        self._cells.append(_Cell(size, len(self._cells), hard={pin} if pin else set(), wild=wild))
        return len(self._cells) - 1

    def axis(self, size: int, *, pin: str | None = None, wild: bool = False) -> Axis:
        """A fresh axis: one leaf, or nothing if the size is one."""
        return () if size == 1 else (self.atom(size, pin=pin, wild=wild),)

    def find(self, atom: Atom) -> Atom:
        """The root that stands for this atom."""
        cells = self._cells
        while cells[atom].parent != atom:
            cells[atom].parent = cells[cells[atom].parent].parent
            atom = cells[atom].parent
        return atom

    def cell(self, atom: Atom) -> _Cell:
        """What is known of the atom's root."""
        return self._cells[self.find(atom)]

    def flat(self, axis: Axis) -> Axis:
        """Roots of the axis: products are expanded, sums stay opaque factors."""
        out: list[Atom] = []
        for a in axis:
            atom = self.find(a)
            cell = self._cells[atom]
            if cell.form == "product":
                out.extend(self.flat(cell.parts[0]))
            elif cell.size != 1:
                out.append(atom)
        return tuple(out)

    def size(self, axis: Axis) -> int:
        """Length of the axis."""
        return prod(self.cell(a).size for a in axis)

    def is_sum(self, atom: Atom) -> bool:
        """Whether the root is laid out end to end from parts."""
        return self.cell(atom).form == "sum"

    def parts(self, atom: Atom) -> tuple[Axis, ...]:
        """The parts of a sum."""
        return self.cell(atom).parts

    def leaves(self, axis: Axis) -> Iterator[Atom]:
        """Every leaf below the axis, with repetition, in order."""
        for atom in self.flat(axis):
            if self.is_sum(atom):
                for part in self.parts(atom):
                    yield from self.leaves(part)
            else:
                yield atom

    def pin(self, axis: Axis, reason: str, *, soft: bool = False) -> None:
        """Every leaf of the axis must stay where it is."""
        for leaf in set(self.leaves(axis)):
            cell = self._cells[leaf]
            (cell.soft if soft else cell.hard).add(reason)
            cell.wild = False  # its places are told apart now

    def tag(self, axis: Axis, tag: str) -> None:
        """Remember how the leaves of the axis are used (for names only, never for identity)."""
        for leaf in set(self.leaves(axis)):
            self._cells[leaf].tags.add(tag)

    def fresh(self, axes: Sequence[Axis]) -> list[Axis]:
        """The axes of one use of a tensor: wild leaves renamed, the same leaf to the same name."""
        names: dict[Atom, Atom] = {}

        def rename(atom: Atom) -> Atom:
            cell = self._cells[atom]
            if not cell.wild or cell.form != "leaf":
                return atom
            if atom not in names:
                names[atom] = self.atom(cell.size, wild=True)
            return names[atom]

        return [tuple(rename(a) for a in self.flat(axis)) for axis in axes]

    # -- refining ----------------------------------------------------------------------------------------------------
    def _refine(self, atom: Atom, form: Literal["product", "sum"], parts: tuple[Axis, ...]) -> None:
        """Give a leaf its parts; what was known of it holds for them."""
        cell = self._cells[atom]
        cell.form, cell.parts = form, parts
        self._inherit(cell, [leaf for part in parts for leaf in self.leaves(part)], wild=form == "product")
        cell.wild = cell.wild and form == "product"

    def _inherit(self, cell: _Cell, leaves: Sequence[Atom], *, wild: bool) -> None:
        for leaf in set(leaves):
            other = self._cells[leaf]
            other.hard |= cell.hard
            other.soft |= cell.soft
            other.wild = other.wild or (cell.wild and wild)

    def split(self, atom: Atom, left: int) -> tuple[Axis, Axis]:
        """Refine an atom into a product of a left factor of that size and the rest."""
        atom = self.find(atom)
        cell = self._cells[atom]
        if left < 1 or cell.size % left:
            raise MisfitError(f"{cell.size} is not divisible by {left}")
        right = cell.size // left
        if cell.form == "leaf":
            first, second = self.axis(left), self.axis(right)
            self._refine(atom, "product", (first + second,))
            return first, second
        parts = [self.flat(part) for part in cell.parts]
        if cell.form == "sum" and all(self.size(part) % right == 0 for part in parts):
            return self._split_sum(parts, right)
        raise MisfitError(f"a sum of {[self.size(p) for p in parts]} has no common right factor {right}")

    def _split_sum(self, parts: list[Axis], right: int) -> tuple[Axis, Axis]:
        """``Sum(a*R, b*R) = Sum(a, b) * R``."""
        lefts, rights = zip(*(self.split_axis(part, self.size(part) // right) for part in parts), strict=True)
        for other in rights[1:]:
            self.unify(rights[0], other)
        total = self.atom(sum(self.size(part) for part in lefts))
        self._refine(total, "sum", tuple(lefts))
        return (total,), rights[0]

    def split_axis(self, axis: Axis, left: int) -> tuple[Axis, Axis]:
        """Cut a product into a left axis of that size and the rest, splitting the atom in between."""
        pool, taken, size = list(self.flat(axis)), list[Atom](), 1
        while size < left:
            atom = pool.pop(0)
            n, need = self._cells[atom].size, left // size
            if left % size or (need % n and n % need):
                raise MisfitError(f"factors do not line up: {n} against {need}")
            if need % n == 0:
                taken.append(atom)
                size *= n
            else:
                first, second = self.split(atom, need)
                pool = [*self.flat(first), *self.flat(second), *pool]
        return tuple(taken), tuple(pool)

    def cut(self, axis: Axis, at: int) -> tuple[Axis, Axis]:
        """Cut an axis at a position (a sum), ``0 < at < length``."""
        flat = self.flat(axis)
        if len(flat) > 1:
            right = self.size(flat[1:])
            if at % right:
                raise MisfitError(f"cut at {at} inside a factor of {right}")
            first, second = self.cut(flat[:1], at // right)
            return first + flat[1:], second + flat[1:]
        cell = self._cells[flat[0]]
        if cell.form == "leaf":
            parts = self.axis(at), self.axis(cell.size - at)
            self._refine(flat[0], "sum", parts)
            return parts
        return self._cut_sum(cell, at)

    def _cut_sum(self, cell: _Cell, at: int) -> tuple[Axis, Axis]:
        offset, before, after = 0, list[Axis](), list[Axis]()
        for part in cell.parts:
            size = self.size(part)
            if offset < at < offset + size:
                first, second = self.cut(part, at - offset)
                before.append(first)
                after.append(second)
            else:
                (before if offset + size <= at else after).append(part)
            offset += size
        cell.parts = (*before, *after)
        return self.concat(before), self.concat(after)

    def slice(self, axis: Axis, start: int, stop: int) -> Axis:
        """The part of an axis from ``start`` to ``stop``; an empty slice is an axis of length zero."""
        if start >= stop:
            return (self.atom(0, pin="empty"),)
        if stop < self.size(axis):
            axis, _ = self.cut(axis, stop)
        if start > 0:
            _, axis = self.cut(axis, start)
        return axis

    def concat(self, parts: Sequence[Axis]) -> Axis:
        """Axes laid end to end; neighbouring sums are flattened, empty parts dropped."""
        out: list[Axis] = []
        for part in parts:
            flat = self.flat(part)
            if len(flat) == 1 and self.is_sum(flat[0]):
                out.extend(self.parts(flat[0]))
            elif self.size(part):
                out.append(part)
        if len(out) == 1:
            return out[0]
        total = self.atom(sum(self.size(part) for part in out))
        self._refine(total, "sum", tuple(out))
        return (total,)

    # -- relating ----------------------------------------------------------------------------------------------------
    def unify(self, x: Axis, y: Axis) -> Axis:
        """``x`` and ``y`` are the same units, position by position; an axis of length one goes with anything.

        Where factors do not line up both are pinned. Returns the longer of the two. MisfitError if the lengths differ.
        """
        if not self.flat(x) or not self.flat(y):
            return x or y
        if self.size(x) != self.size(y):
            raise MisfitError(f"axes of {self.size(x)} and {self.size(y)} cannot be the same units")
        try:
            self._unify(list(self.flat(x)), list(self.flat(y)))
        except MisfitError:
            self.pin(x, "misaligned")
            self.pin(y, "misaligned")
        return x

    def _unify(self, left: list[Atom], right: list[Atom]) -> None:
        while left and right:
            a, b = self.find(left.pop(0)), self.find(right.pop(0))
            if self._cells[a].form == "product":
                left, right = [*self.flat((a,)), *left], [b, *right]
            elif self._cells[b].form == "product":
                left, right = [a, *left], [*self.flat((b,)), *right]
            elif a == b:
                continue
            elif (na := self._cells[a].size) == (nb := self._cells[b].size):
                self._unify_atoms(a, b)
            elif na > nb:
                first, second = self.split(a, nb)
                left, right = [*self.flat(first), *self.flat(second), *left], [b, *right]
            else:
                first, second = self.split(b, na)
                left, right = [a, *left], [*self.flat(first), *self.flat(second), *right]

    def _unify_atoms(self, a: Atom, b: Atom) -> None:
        if self._cells[b].form == "leaf":
            a, b = b, a
        lesser, root = self._cells[a], self._cells[b]
        if lesser.form == "leaf":
            lesser.parent = b
            for leaf in {b, *self.leaves((b,))}:
                self._cells[leaf].wild = self._cells[leaf].wild and lesser.wild
            root.tags |= lesser.tags
            self._inherit(_Cell(0, 0, hard=lesser.hard, soft=lesser.soft), list(self.leaves((b,))), wild=False)
            return
        mine, other, parts = list(lesser.parts), list(root.parts), list[Axis]()
        while mine:  # two sums: common refinement of the cut points
            p, q = mine.pop(0), other.pop(0)
            m, n = self.size(p), self.size(q)
            if m > n:
                p, rest = self.cut(p, n)
                mine.insert(0, rest)
            elif n > m:
                q, rest = self.cut(q, m)
                other.insert(0, rest)
            self.unify(p, q)
            parts.append(q)
        root.parts = tuple(parts)
        lesser.parent = b

    def view(self, axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
        """Row-major regrouping of axes into the given sizes.

        Dimensions are grouped into smallest groups of equal product, which keeps a misfit local to its group.
        """
        out, i, j = list[Axis](), 0, 0
        lengths = [self.size(axis) for axis in axes]
        while j < len(sizes):
            if sizes[j] == 1:
                out.append(())
                j += 1
                continue
            start, first, p, q = i, j, 1, 1
            while p != q or p == 1:
                if p <= q and (p < q or p == 1):
                    p *= lengths[i]
                    i += 1
                else:
                    q *= sizes[j]
                    j += 1
            out += self._regroup(tuple(a for axis in axes[start:i] for a in axis), sizes[first:j])
        return out

    def _regroup(self, pool: Axis, sizes: Sequence[int]) -> list[Axis]:
        out, rest = list[Axis](), pool
        try:
            for size in sizes:
                taken, rest = self.split_axis(rest, size)
                out.append(taken)
        except MisfitError:
            self.pin(pool, "misaligned view")
            return [self.axis(size, pin="misaligned view") for size in sizes]
        return out
