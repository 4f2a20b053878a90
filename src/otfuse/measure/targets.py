"""What the parents predict together: computed once per input, kept small, and how far a model is from it.

Of an output that is a distribution (classes, tokens) the parents' probabilities are averaged, of any other its values. No
label is read. ``places`` tells, for outputs that have such positions, which predictions count.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Self, cast

import numpy as np
import torch

from otfuse.errors import DataError, MatchError, ResourceError
from otfuse.measure.probe import probe_batches
from otfuse.measure.room import free_mib
from otfuse.program.run import Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from otfuse.core.dataset import Dataset
    from otfuse.measure.probe import Side

    Places = NDArray[np.bool_]
    Tell = Callable[[int, int], None]

_SHARE = (
    0.125  # of the free memory that targets may take (twice that while they are joined); beyond, they lie in a file
)
_MOST = 1 << 28  # bytes of one output's
_LOWEST = -1e4  # of a log-probability: what a model rules out altogether (minus infinity) must not make 0 * infinity


@dataclass(slots=True, eq=False)
class Target:
    """Of one output, ``rows[prediction, entry]`` of all examples in order; those of example ``e`` begin at ``starts[e]``.

    Probabilities (``distribution``) are in float16, other values in float32: they may be of any size.
    """

    rows: NDArray[Any]
    starts: NDArray[np.int64]
    distribution: bool

    def take(self, examples: NDArray[np.int64]) -> torch.Tensor:
        """``[prediction, entry]`` in float32 of these examples, in their order; probabilities sum to one."""
        parts = [self.rows[self.starts[e] : self.starts[e + 1]] for e in examples]
        found = torch.from_numpy(np.concatenate(parts).astype(np.float32))
        return found / found.sum(-1, keepdim=True).clamp(min=1e-6) if self.distribution else found


@dataclass(slots=True, eq=False)
class Targets:
    """What the parents predict together on ``size`` examples, output by output. A context: leaving it gives the space back."""

    outputs: tuple[Target, ...]
    size: int
    places: Places | None = None
    files: tuple[BinaryIO, ...] = ()

    @property
    def distribution(self) -> bool:
        """Whether every output is a distribution."""
        return all(output.distribution for output in self.outputs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files:
            file.close()


@dataclass(frozen=True, slots=True, eq=False)
class Apart:
    """How far a model is from the targets, by example, so that the mean over examples is the mean over predictions.

    ``divergence``: Kullback-Leibler divergence from the targets to the model's distribution; ``against``: cross-entropy
    against the target's most likely class (nats). Both are the squared error where an output is no distribution.
    """

    divergence: torch.Tensor
    against: torch.Tensor


def together(
    found: Sequence[Side],
    weights: Sequence[float],
    data: Dataset,
    places: Places | None = None,
    *,
    names: Sequence[str] = (),
    half: bool = True,
    tell: Tell | None = None,
) -> Targets:
    """The parents' weighted mean prediction on every example, each parent run once, its weights read as they are needed.

    Kept in memory while that is small, else in a file without a name, which ends with the process. ``half`` False keeps
    probabilities in float32. Raises DataError where a parent's outputs are not finite, MatchError where they have other
    shapes, ResourceError where the disk is full.
    """
    called = list(names) or [f"model {i}" for i in range(len(found))]
    runs, kept, done = [Runner(side.program) for side in found], list[_Kept](), 0
    try:
        for part, batch in probe_batches(found[0].program, data, tell):
            own = None if places is None else places[done : done + part.real]
            outputs = [_outputs(run(side.weights, batch)) for run, side in zip(runs, found, strict=True)]
            each = [[_counted(output, part.size, part.real, own) for output in theirs] for theirs in outputs]
            _require_alike(each, called)
            kept = kept or _room(found[0], each[0], data.size / part.real, half=half)
            for keep, *theirs in zip(kept, *each, strict=True):
                parts = [_prediction(values, logits=keep.logits) for values, _ in theirs]
                _require_finite(parts, theirs[0][1], called, done)
                keep.add(sum(w * p for w, p in zip(weights, parts, strict=True)), theirs[0][1])
            done += part.real
        files = tuple(keep.file for keep in kept if keep.file is not None)
        return Targets(tuple(keep.target() for keep in kept), data.size, places, files)
    except BaseException:
        for keep in kept:
            keep.drop()
        raise


def _room(side: Side, first: Sequence[tuple[torch.Tensor, Any]], times: float, *, half: bool) -> list[_Kept]:
    """A place for each output, by what the first of so many batches gave."""
    pairs = zip(first, _floating(side), strict=True)
    return [_Kept(len(v) * times, v.shape[-1], logits=logits, half=half) for (v, _), logits in pairs]


def apart(
    side: Side,
    weights: Mapping[str, torch.Tensor],
    data: Dataset,
    targets: Targets,
    examples: NDArray[np.int64] | None = None,
) -> Apart:
    """How far the model of ``side`` with these ``weights`` (by first stored name) is from the targets.

    ``examples`` are the numbers of some of the data's examples, in order; None: all.
    """
    asked = np.arange(data.size) if examples is None else examples
    run, done, chosen = Runner(side.program), 0, data if examples is None else data.take(examples)
    sums = torch.zeros(2, len(targets.outputs), len(asked), dtype=torch.float64)
    for part, batch in probe_batches(side.program, chosen):
        numbers = asked[done : done + part.real]
        own = None if targets.places is None else targets.places[numbers]
        for i, (output, target) in enumerate(zip(_outputs(run(weights, batch)), targets.outputs, strict=True)):
            values, counts = _counted(output, part.size, part.real, own)
            wanted = target.take(numbers).to(values.device)
            gaps = torch.stack(gaps_of(values, wanted, distribution=target.distribution)).double().cpu()
            index = torch.from_numpy(np.repeat(np.arange(done, done + part.real), counts))
            sums[:, i].index_add_(1, index, gaps)
        done += part.real
    totals = [max(1, int((t.starts[asked + 1] - t.starts[asked]).sum())) for t in targets.outputs]
    each = (sums * (len(asked) / torch.tensor(totals, dtype=torch.float64))[:, None]).sum(1)
    return Apart(each[0], each[1])


def gaps_of(values: torch.Tensor, wanted: torch.Tensor, *, distribution: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Per prediction: divergence from ``wanted[prediction, entry]``, and cross-entropy against its most likely entry."""
    if not distribution:
        squared = (values.float() - wanted).square().mean(-1)
        return squared, squared
    log_p = log_probabilities(values)
    own = torch.xlogy(wanted, wanted).sum(-1)
    return own - (wanted * log_p).sum(-1), -log_p.gather(-1, wanted.argmax(-1, keepdim=True))[:, 0]


def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """In float32 (float64 stays), minus infinity replaced by a number."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.log_softmax(-1).clamp(min=_LOWEST)


def counted(outputs: Sequence[torch.Tensor], examples: int, places: Places | None) -> list[torch.Tensor]:
    """Of a model's floating outputs ``[examples, ..., entry]`` the predictions that count, ``[prediction, entry]`` each."""
    return [_counted(output, examples, examples, places)[0] for output in _outputs(outputs)]


def _outputs(outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Those that can be averaged; whole numbers and masks cannot."""
    found = [output for output in outputs if output.is_floating_point()]
    if not found:
        raise DataError(
            "the model returns whole numbers only: there is nothing to average; give a model that returns values"
        )
    return found


def _floating(side: Side) -> list[bool]:
    nodes = zip(side.program.outputs, side.program.logits, strict=True)
    return [logits for node, logits in nodes if node.meta["val"].is_floating_point()]


def _counted(
    output: torch.Tensor, size: int, real: int, places: Places | None
) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """``[prediction, entry]`` of the ``real`` first of ``size`` examples, and how many predictions each has."""
    output = output.unsqueeze(-1) if output.ndim <= 1 else output
    if output.ndim == 1 or len(output) % size:
        raise DataError(
            f"an output of shape {list(output.shape)} cannot be told apart by example ({size} went in); only models whose "
            "outputs begin with the examples can learn what others predict"
        )
    values = output.reshape(size, -1, output.shape[-1])[:real]
    if places is None or places.ndim != 2 or values.shape[1] != places.shape[1]:
        return values.reshape(-1, values.shape[-1]), np.full(real, values.shape[1])
    mask = torch.from_numpy(places).to(values.device)
    return values[mask], places.sum(1)


def _prediction(values: torch.Tensor, *, logits: bool) -> torch.Tensor:
    return log_probabilities(values).exp() if logits else values.float()


def _require_alike(each: Sequence[Sequence[tuple[torch.Tensor, Any]]], names: Sequence[str]) -> None:
    shapes = [[list(values.shape) for values, _ in theirs] for theirs in each]
    for name, own in zip(names, shapes, strict=True):
        if own != shapes[0]:
            raise MatchError(
                f"what {names[0]} and {name} predict cannot be averaged: {shapes[0]} and {own} values for the same inputs; "
                "give models of the same classes or vocabulary"
            )


def _require_finite(parts: Sequence[torch.Tensor], counts: NDArray[np.int64], names: Sequence[str], first: int) -> None:
    for name, values in zip(names, parts, strict=True):
        bad = ~values.isfinite().all(-1)
        if bad.any():
            example = first + int(np.repeat(np.arange(len(counts)), counts)[int(bad.nonzero()[0])])
            raise DataError(
                f"{name}: what it predicts for example {example} of the data is not finite; leave that example out, or "
                "check the model's weights"
            )


class _Kept:
    """Where one output's rows go while they are computed: a list, or a file if they will be many."""

    def __init__(self, rows: float, entries: int, *, logits: bool, half: bool) -> None:
        self.logits, self._entries = logits, entries
        self._type = np.dtype(np.float16 if logits and half else np.float32)
        expected = rows * entries * self._type.itemsize
        large = expected > min(_MOST, _SHARE * free_mib() * (1 << 20))
        self.file = cast("BinaryIO", tempfile.TemporaryFile()) if large else None  # noqa: SIM115
        self._rows: list[NDArray[Any]] = []
        self._counts: list[NDArray[np.int64]] = []

    def add(self, values: Any, counts: NDArray[np.int64]) -> None:
        made = values.cpu().numpy().astype(self._type)
        self._counts.append(counts)
        if self.file is None:
            self._rows.append(made)
            return
        try:
            self.file.write(made.tobytes())
            self.file.flush()
        except OSError as error:
            raise ResourceError(
                f"what the parents predict needs more room than {tempfile.gettempdir()} has ({error.strerror}); free space "
                "there, set TMPDIR to a place with more, or give fewer inputs"
            ) from None

    def target(self) -> Target:
        starts = np.concatenate([[0], np.cumsum(np.concatenate(self._counts))]).astype(np.int64)
        shape = (int(starts[-1]), self._entries)
        if self.file is None:
            rows = np.concatenate(self._rows)
        elif shape[0] == 0:
            rows = np.empty(shape, self._type)
        else:
            rows = np.memmap(self.file, self._type, "r", shape=shape)
        return Target(rows, starts, self.logits)

    def drop(self) -> None:
        if self.file is not None:
            self.file.close()


def split(size: int, held_back: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which examples are learned from and which are held back, each in order: a function of the seed alone."""
    count = min(size - 1, max(1, round(held_back * size)))
    order = np.random.default_rng([seed, size]).permutation(size)
    return np.sort(order[count:]), np.sort(order[:count])


def require_variety(data: Dataset, what: str) -> None:
    """DataError if there is one example only, or all are the same: nothing can be learned from it and judged by it."""
    few = f"{what} learns what the parents predict"
    if data.size < 2:
        raise DataError(
            f"{few}, and one example is given, which cannot be learned from and held back; give 100 or more"
        )
    if all(len(a) == data.size and bool((a == a[:1]).all()) for a in data.inputs.values()):
        raise DataError(f"{few}, and all {data.size} examples are the same; give 100 or more that differ")
