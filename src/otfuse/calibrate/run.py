"""Calibrating: every linear layer of a merged model solved again in closed form, without a gradient or a label."""

from __future__ import annotations

from collections import ChainMap
from typing import TYPE_CHECKING, Any, NamedTuple

from otfuse.calibrate.layers import calibrated_layers
from otfuse.calibrate.sweep import Strength, Sweeper
from otfuse.calibrate.waiting import IN_MEMORY
from otfuse.measure.departure import departure, mean_predictions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from otfuse.core.dataset import Dataset
    from otfuse.core.options import Calibrated
    from otfuse.measure.probe import Side
    from otfuse.program.export import Program

    Progress = Callable[[int, int], None]

RIDGES = (0.01, 0.002, 0.0004)  # tried where the recipe says auto
_TRIED = 320  # inputs that tries look at
_HELD_BACK = 0.25  # of these


class Calibration(NamedTuple):
    """Weights by first stored name (what was not solved is what was given), notes, and figures for the report.

    ``figures``: ``ridge``, ``sweeps``, ``layers`` and ``tensors`` solved; ``tried`` (departure by ridge) where several were.
    """

    weights: dict[str, Tensor]
    notes: list[str]
    figures: dict[str, Any]


def calibrate(
    parents: Sequence[Side],
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
    model as solved so far, its targets what the parents' layers give on their own inputs. ``data`` are unlabelled inputs as the
    anchor's program takes them; values that wait between two layers are kept in ``memory`` bytes, else on disk.
    ``progress(done, total)`` counts groups of layers; ``names`` are those of the parents, for messages.

    Raises DataError if a model gives no finite numbers (naming it and the examples) or inputs do not fit, OutputError if
    values that wait cannot be written.
    """
    names = names or [f"parent {i + 1}" for i in range(len(parents))]
    alike = [i for i, side in enumerate(parents) if same_steps(parents[0].program, side.program)]
    total = sum(mix[i] for i in alike)
    kept, shares = [parents[i] for i in alike], [mix[i] / total if total else 1 / len(alike) for i in alike]
    layers = calibrated_layers(kept[0].program, kept[0].graph)
    notes = layers.notes()
    if lost := [name for i, name in enumerate(names) if i not in alike]:
        notes.append(
            f"calibrated without {', '.join(lost)}: other operators or sizes than the anchor's; carry it over first"
        )
    weights = {name: start.get(name, parents[0].weights[name]) for name in dict.fromkeys(kept[0].program.ties.values())}
    figures: dict[str, Any] = {"layers": sum(map(len, layers.groups)), "tensors": len(layers.solved)}
    if not layers.groups:
        return Calibration(weights, notes, figures)
    sweeper = Sweeper(kept, layers, shares, [names[i] for i in alike], memory)
    ridge = options.ridge
    if ridge == "auto":
        ridge, tried = _best(sweeper, kept, shares, weights, data, options)
        figures["tried"] = tried
        table = ", ".join(f"{value:g}: {gap:.3f}" for value, gap in tried.items())
        notes.append(
            f"ridge {ridge:g} chosen by divergence from the parents' mean prediction on held-back inputs ({table})"
        )
    figures |= {"ridge": ridge, "sweeps": options.sweeps}
    count = len(layers.groups) * options.sweeps
    for sweep in range(options.sweeps):

        def tell(done: int, _: int, first: int = sweep * len(layers.groups)) -> None:
            if progress is not None:
                progress(first + done, count)

        weights |= sweeper(weights, data, Strength(ridge, options.blend), tell)
        tell(len(layers.groups), count)
    return Calibration(weights, notes, figures)


def _best(
    sweeper: Sweeper,
    parents: Sequence[Side],
    mix: Sequence[float],
    weights: Mapping[str, Tensor],
    data: Dataset,
    options: Calibrated,
) -> tuple[float, dict[float, float]]:
    """The ridge after which one sweep on some inputs departs least from the parents' mean prediction on others."""
    few = data.take(slice(0, _TRIED))
    held = max(1, round(_HELD_BACK * few.size))
    if few.size < 2:
        return RIDGES[0], {}
    fit, probe = few.take(slice(0, few.size - held)), few.take(slice(few.size - held, None))
    targets, tried = mean_predictions(parents, mix, probe), dict[float, float]()
    for value in RIDGES:
        solved = sweeper(weights, fit, Strength(value, options.blend))
        tried[value] = departure(parents[0], ChainMap(solved, dict(weights)), probe, targets)
    return min(tried, key=tried.__getitem__), tried


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
