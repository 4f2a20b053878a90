"""A program beside itself with some weights moved: of the second only what differs is computed.

What a move does to a program usually comes to nothing soon: the pairs of an attention are turned, and its scores are what
they were. So a variant is followed from the first step that reads what it moved to the last place where anything differs,
and one run through the program tries every attention of a model at the cost of about one forward pass.
"""

from __future__ import annotations

import functools
from collections import ChainMap
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from otfuse.program.memory import written
from otfuse.program.run import Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import fx

    from otfuse.program.inputs import Inputs

_REFUSALS = (RuntimeError, IndexError, ValueError, NotImplementedError)  # of a program, to inputs that it does not take
_NEAR = 1e-9  # of an element: far above rounding in float64
_FLOOR = 1e-12  # of what small elements are like: rounding of a sum does not shrink with the sum
_SMALL = 0.01  # the part of all elements that is small: masks leave large ones


@dataclass(slots=True, eq=False)
class Variant:
    """The stored tensors ``names`` as ``move(name, tensor)`` gives them, instead of what they are.

    ``trial`` numbers what the variant is tried for: while one of a trial differs where nothing that it moved is read any
    more, no other of that trial is begun. ``witness``, another variant of the same tensors, is followed as long as this one.
    ``patience``: it is given up, its gap infinite, when so many steps that read other stored tensors have taken its difference on
    where nothing that it moved is read any more (None: never). Until then it is not compared, if ``late``.
    By the number of the input: ``gaps``, the relative change at the outputs, zero where everything came to nothing before;
    ``told``, the largest relative change of what the witness left there.
    """

    names: frozenset[str]
    move: Callable[[str, torch.Tensor], torch.Tensor]
    trial: int = 0
    witness: Variant | None = None
    patience: int | None = None
    late: bool = False
    gaps: dict[int, float] = field(default_factory=dict)
    told: dict[int, float] = field(default_factory=dict)
    values: dict[int, dict[fx.Node, Any]] = field(default_factory=dict)  # by the number of the input: what differs
    weights: dict[fx.Node, torch.Tensor] = field(default_factory=dict)
    taken_on: int = 0  # steps, as ``patience`` counts them

    def anew(self) -> Variant:
        """The same, as it was before it was followed."""
        return Variant(
            self.names, self.move, self.trial, self.witness and self.witness.anew(), self.patience, self.late
        )


class Lockstep(Runner):
    """Interprets a program on several inputs at once, and variants beside it; a weight is taken and moved once."""

    def follow(
        self, weights: Mapping[str, torch.Tensor], inputs: Sequence[Inputs], variants: Sequence[Variant]
    ) -> tuple[set[int], list[Variant]]:
        """Which inputs the program does not take, or answers without any number; and the variants that were not begun.

        Raises what the program raises on the first input. It ends where nothing differs and nothing is left to begin.
        """
        spans = {variant: self._span(variant) for variant in variants}
        shared = self._first(weights)
        device = next((weight.device for weight in shared.values()), torch.device("cpu"))
        envs = {i: self._given(given, device) for i, given in enumerate(inputs)}
        waiting = sorted(variants, key=lambda v: spans[v][0], reverse=True)
        active, refused, put_off = list[Variant](), set[int](), list[Variant]()
        for at, node in enumerate(self._steps):
            while waiting and spans[waiting[-1]][0] <= at:
                new = waiting.pop()
                if any(v.trial == new.trial and spans[v][1] < at for v in active):
                    put_off.append(new)
                    continue
                for one in _both(new):
                    one.values = {i: {} for i in envs}
                active.append(new)
            self._load(node.all_input_nodes, shared, weights)
            early = {one for one in active if one.late and at < spans[one][1]}
            self._advance(node, envs, shared, active, early)
            for one in active:
                self._give_up(node, one, ended=at > spans[one][1])
            refused |= set(range(len(inputs))) - envs.keys()
            self._forget(node, envs, shared, active)
            for one in active:
                _settle(one, envs, ended=at >= spans[one][1])
            active = [one for one in active if one.values]
            if not active and not waiting:
                return refused, put_off
        self._load(self._program.outputs, shared, weights)
        return refused | self._compare(envs, shared, active), put_off

    def _span(self, one: Variant) -> tuple[int, int]:
        """The first and the last step that read what a variant moves."""
        found = [at for name in one.names for at in self._reads.get(name, ())]
        return min(found, default=0), max(found, default=-1)

    @functools.cached_property
    def _reads(self) -> dict[str, list[int]]:
        """The steps that read each stored tensor, by number; what is given out as it is, is read after the last."""
        found: dict[str, list[int]] = {}
        for at, nodes in enumerate((*(step.all_input_nodes for step in self._steps), self._program.outputs)):
            for node in nodes:
                if node in self._stored:
                    found.setdefault(self._stored[node], []).append(at)
        return found

    @functools.cached_property
    def _writes(self) -> dict[fx.Node, list[fx.Node]]:
        return {step: values for step in self._steps if (values := written(step))}

    def _advance(
        self,
        node: fx.Node,
        envs: dict[int, dict[fx.Node, Any]],
        shared: Mapping[fx.Node, Any],
        active: Sequence[Variant],
        early: set[Variant],
    ) -> None:
        """One step of everything. An input at which the program itself fails is dropped, unless it is the first."""
        for i, env in list(envs.items()):
            own = self._apart(node, ChainMap(env, shared))  # type: ignore[arg-type]
            try:
                env[node] = self._step(node, own)
            except _REFUSALS:
                if i == 0:
                    raise
                del envs[i]
                for one in (other for variant in active for other in _both(variant)):
                    one.values.pop(i, None)
                continue
            for one in (other for variant in active for other in _both(variant) if i in other.values):
                self._moved_weights(node, one, shared)
                own_values = one.values[i]
                if not any(read in own_values or read in one.weights for read in node.all_input_nodes):
                    continue
                found = ChainMap(own_values, one.weights, env, shared)  # type: ignore[arg-type]
                value = self._step(node, self._apart(node, found))
                if one in early or not same(value, env[node]):
                    own_values[node] = value

    def _give_up(self, node: fx.Node, one: Variant, *, ended: bool) -> None:
        if one.patience is None or not ended or not any(read in self._stored for read in node.all_input_nodes):
            return
        one.taken_on += any(node in values for values in one.values.values())
        if one.taken_on > one.patience:
            for other in _both(one):
                other.gaps |= dict.fromkeys(other.values, inf)
                other.values.clear()

    def _moved_weights(self, node: fx.Node, one: Variant, shared: Mapping[fx.Node, Any]) -> None:
        for read in node.all_input_nodes:
            if read not in one.weights and self._stored.get(read) in one.names:
                one.weights[read] = one.move(self._stored[read], shared[read])

    def _apart(self, node: fx.Node, found: Mapping[fx.Node, Any]) -> Mapping[fx.Node, Any]:
        """What a step writes into is a copy, for others read it too."""
        copies = {value: tree_map(_copy, found[value]) for value in self._writes.get(node, ())}
        return ChainMap(copies, found) if copies else found  # type: ignore[arg-type]

    def _forget(
        self,
        node: fx.Node,
        envs: Mapping[int, dict[fx.Node, Any]],
        shared: dict[fx.Node, Any],
        active: Sequence[Variant],
    ) -> None:
        both = [other for variant in active for other in _both(variant)]
        for held in (shared, *envs.values(), *(h for one in both for h in (one.weights, *one.values.values()))):
            for used in self._dies[node]:
                held.pop(used, None)

    def _compare(
        self, envs: Mapping[int, Mapping[fx.Node, Any]], shared: Mapping[fx.Node, Any], active: Sequence[Variant]
    ) -> set[int]:
        """What still differs at the outputs; and the inputs whose answers are not numbers, of which nothing is told."""
        silent = set[int]()
        for i, env in envs.items():
            outputs = [env[node] if node in env else shared[node] for node in self._program.outputs]
            if not all(bool(output.isfinite().any()) for output in outputs):
                silent.add(i)
                continue
            for one in (variant for variant in active if i in variant.values):
                one.gaps[i], gap = (
                    max((self._gap(v, i, n, env) for n in self._program.outputs), default=0.0)
                    for v in (one, one.witness or one)
                )
                one.told[i] = gap
        return silent

    def _gap(self, one: Variant, i: int, node: fx.Node, env: Mapping[fx.Node, Any]) -> float:
        if self._stored.get(node) in one.names:
            return inf
        return change(one.values[i][node], env[node]) if node in one.values[i] else 0.0


def same(new: Any, old: Any) -> bool:
    """Whether two values are equal up to rounding in float64, element by element; what is no number equals its like."""
    pairs = list(zip(tree_leaves(new), tree_leaves(old), strict=True))
    return all(_same(a, b) if isinstance(b, torch.Tensor) else a == b for a, b in pairs)


def _same(new: torch.Tensor, old: torch.Tensor) -> bool:
    if new.shape != old.shape:
        return False
    if not (old.is_floating_point() or old.is_complex()):
        return torch.equal(new, old)
    other = (new != old) & ~(new.isnan() & old.isnan())
    a, b = new[other], old[other]
    if not b.numel():
        return True
    if not bool(a.isfinite().all() and b.isfinite().all()):
        return False
    size = b.abs()
    small = size.kthvalue(1 + int(_SMALL * (len(size) - 1))).values
    return bool(((a - b).abs() <= _NEAR * size + _FLOOR * small).all())


def change(new: Any, old: Any) -> float:
    """The relative change of a value's tensors where the old one is finite, the largest; infinite if that is no number."""
    worst = 0.0
    for a, b in zip(tree_leaves(new), tree_leaves(old), strict=True):
        if not isinstance(b, torch.Tensor):
            worst = max(worst, 0.0 if a == b else inf)
            continue
        if a.shape != b.shape:
            return inf
        fine = b.isfinite()
        a, b = a[fine].to(torch.promote_types(a.dtype, torch.float64)), b[fine]
        ratio = float((a - b).norm() / b.to(a.dtype).norm().clamp_min(1e-300))
        worst = max(worst, ratio if ratio == ratio else inf)  # noqa: PLR0124  # nan is not equal to itself
    return worst


def _settle(one: Variant, envs: Mapping[int, Mapping[fx.Node, Any]], *, ended: bool) -> None:
    """End a variant on the inputs where nothing differs any more, if nothing that it moved is read any more."""
    for i in [i for i, values in one.values.items() if ended and not values]:
        del one.values[i]
        left = one.witness.values.pop(i) if one.witness is not None else {}
        one.gaps[i] = 0.0
        one.told[i] = max((change(value, envs[i][node]) for node, value in left.items()), default=0.0)


def _both(one: Variant) -> tuple[Variant, ...]:
    return (one,) if one.witness is None else (one, one.witness)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
