"""Calibrating: every linear layer of a merged model solved again in closed form, without a gradient or a label."""

from __future__ import annotations

import math
from collections import ChainMap
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from otfuse.align.plan import places
from otfuse.calibrate.between import Between
from otfuse.calibrate.layers import calibrated_layers
from otfuse.calibrate.sweep import Seen, Strength, Sweeper
from otfuse.calibrate.waiting import IN_MEMORY
from otfuse.measure.targets import apart, together

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from otfuse.calibrate.between import SeenLayers
    from otfuse.calibrate.layers import Layers
    from otfuse.core.dataset import Dataset
    from otfuse.core.options import Calibrated
    from otfuse.measure.probe import Side
    from otfuse.program.export import Program

    Progress = Callable[[int, int], None]

RIDGES, BLENDS = (0.01, 0.001, 0.0001), (1.0, 0.75, 0.5)  # tried where the recipe says auto
_TRIED = 16, 320  # inputs that tries look at, least and most; between them as many as have _ROWS rows of units
_ROWS = 4096
_HELD_BACK = 0.25  # of these


class Calibration(NamedTuple):
    """Weights by first stored name (what was not solved is what was given), notes, and figures for the report.

    ``figures``: ``ridge``, ``blend``, ``sweeps``, ``layers`` and ``tensors`` solved; ``tried`` where several were:
    departure by ``ridge`` and by ``blend``.
    """

    weights: dict[str, Tensor]
    notes: list[str]
    figures: dict[str, Any]


def calibrate(
    parents: Sequence[Side | Between],
    start: Mapping[str, Tensor],
    data: Dataset,
    options: Calibrated,
    mix: Sequence[float],
    progress: Progress | None = None,
    *,
    names: Sequence[str] = (),
    memory: int = IN_MEMORY,
) -> Calibration:
    """Every linear layer of ``start`` solved towards the mean (by ``mix``) of what the parents' layers give.

    ``start`` holds the merged model's tensors by first stored name, in the units of ``parents``, of which the first is the
    anchor; what it lacks is the anchor's. In the order of the forward pass, each layer's inputs are those of the merged
    model as solved so far, its targets what the parents' layers give on their own inputs; with ``options.norms`` each gain's
    too. A parent of other sizes comes with the maps that join it to the anchor (Between); then gains stay as they are. ``data`` are unlabelled inputs as the anchor's program takes them; values that wait between two layers are kept in
    ``memory`` bytes, else on disk.
    ``progress(done, total)`` counts groups of layers; ``names`` are those of the parents, for messages.

    Raises DataError if a model gives no finite numbers (naming it and the examples) or inputs do not fit, OutputError if
    values that wait cannot be written.
    """
    names, anchor = names or [f"parent {i + 1}" for i in range(len(parents))], parents[0]
    assert not isinstance(anchor, Between)  # it is what the others are carried to
    layers = calibrated_layers(anchor.program, anchor.graph, norms=options.norms and not _unequal(parents))
    seen, told = _seen(parents, anchor, layers, mix, names)
    notes = [*layers.notes(), *told]
    firsts = dict.fromkeys(anchor.program.ties.values())
    weights = {name: start[name] if name in start else anchor.weights[name] for name in firsts}
    figures: dict[str, Any] = {"layers": sum(map(len, layers.groups)), "tensors": len(layers.solved)}
    if layers.groups:
        sweeper = Sweeper(seen, layers, memory)
        strength, tried = _choose(sweeper, seen, weights, data, options)
        figures |= {"ridge": strength.ridge, "blend": strength.blend, "sweeps": options.sweeps}
        if tried:
            figures["tried"] = tried
            notes += [_told(what, getattr(strength, what), gaps) for what, gaps in tried.items()]
        _sweeps(sweeper, weights, data, strength, options.sweeps, progress)
    return Calibration(weights, notes, figures)


def _unequal(parents: Sequence[Side | Between]) -> bool:
    return any(isinstance(parent, Between) for parent in parents)


def _seen(
    parents: Sequence[Side | Between], anchor: Side, layers: Layers, mix: Sequence[float], names: Sequence[str]
) -> tuple[list[Seen], list[str]]:
    """The parents whose layers correspond to the anchor's, and a note on the others."""
    found, without = list[Seen](), list[str]()
    for parent, share, name in zip(parents, mix, names, strict=True):
        side, carried, views = (
            parent.seen(layers, anchor) if isinstance(parent, Between) else _as_it_is(parent, layers, anchor)
        )
        if views is None:
            without.append(name)
        else:
            found.append(Seen(name, side, carried, views, share))
    told = f"calibrated without {', '.join(without)}: other operators or sizes than the anchor's; carry it over first"
    shares = _shares([own.share for own in found])
    notes = [told] if without else []
    if _unequal(parents):
        notes.append("gains of norms are not calibrated: a parent has other sizes")
    return [own._replace(share=share) for own, share in zip(found, shares, strict=True)], notes


def _as_it_is(side: Side, layers: Layers, anchor: Side) -> SeenLayers:
    same = same_steps(anchor.program, side.program)
    views = [[layer.form.outputs for layer in group] for group in layers.groups] if same else None
    return side, side.weights, views


def _sweeps(
    sweeper: Sweeper,
    weights: dict[str, Tensor],
    data: Dataset,
    strength: Strength,
    sweeps: int,
    progress: Progress | None,
) -> None:
    """Solved tensors into ``weights``, sweep after sweep."""
    for sweep in range(sweeps):

        def tell(done: int, count: int, first: int = sweep) -> None:
            if progress is not None:
                progress(first * count + done, sweeps * count)

        weights |= sweeper(weights, data, strength, tell)


def _shares(mix: Sequence[float]) -> list[float]:
    total = sum(mix)
    return [weight / total if total else 1 / len(mix) for weight in mix]


def _told(what: str, chosen: float, tried: Mapping[float, float]) -> str:
    table = ", ".join(f"{value:g}: {gap:.3f}" for value, gap in tried.items())
    return f"{what} {chosen:g} chosen by divergence from the parents' mean prediction on held-back inputs ({table})"


def _choose(
    sweeper: Sweeper,
    parents: Sequence[Seen],
    weights: Mapping[str, Tensor],
    data: Dataset,
    options: Calibrated,
) -> tuple[Strength, dict[str, dict[float, float]]]:
    """The strength of the recipe; of several, the one after which a sweep on some inputs predicts others best, and all tried.

    That is, departs least from the parents' mean prediction: ridges first, then blends at the best of them. A single input
    tells nothing: then the first of each.
    """
    anchor, (ridges, blends) = parents[0].side, _values(options)
    chosen, tried = Strength(ridges[0], blends[0]), dict[str, dict[float, float]]()
    few = data.take(slice(0, tried_with(anchor.program)))
    if not tries(options) or few.size < 2:
        return chosen, tried
    held = max(1, round(_HELD_BACK * few.size))
    fit, probe = few.take(slice(0, few.size - held)), few.take(slice(few.size - held, None))
    sides, mix = [parent.side for parent in parents], [parent.share for parent in parents]
    with together(sides, mix, probe, half=False) as targets:

        @cache
        def departs(strength: Strength) -> float:
            solved = sweeper(weights, fit, strength)
            gap = float(apart(anchor, ChainMap(solved, dict(weights)), probe, targets).divergence.mean())
            return math.inf if math.isnan(gap) else gap

        for what, values in (("ridge", ridges), ("blend", blends)):
            if len(values) > 1:
                tried[what] = {value: departs(replace(chosen, **{what: value})) for value in values}
                chosen = replace(chosen, **{what: min(tried[what], key=tried[what].__getitem__)})
    return chosen, tried


def _values(options: Calibrated) -> tuple[Sequence[float], Sequence[float]]:
    """Ridges and blends to choose from."""
    ridges = RIDGES if options.ridge == "auto" else (options.ridge,)
    return ridges, BLENDS if options.blend == "auto" else (options.blend,)


def tries(options: Calibrated) -> int:
    """How many strengths are tried."""
    count = sum(map(len, _values(options))) - 1
    return count if count > 1 else 0


def tried_with(program: Program) -> int:
    """How many inputs tries look at, at most: of long ones fewer."""
    least, most = _TRIED
    return min(most, max(least, int(_ROWS // places(program))))


def same_steps(one: Program, other: Program) -> bool:
    """Whether two programs run the same operators on values of the same sizes, so that they can be cut alike."""
    return one is other or _steps(one) == _steps(other)


def _steps(program: Program) -> list[tuple[Any, ...]]:
    live = program.live()
    return [
        (
            node.name,
            node.op,
            str(node.target),
            str(node.args),
            str(node.kwargs),
            getattr(node.meta.get("val"), "shape", None),
            program.parameters.get(node.name),
        )
        for node in program.graph.nodes
        if node in live
    ]
