"""The whole idea in one file: two networks that learned alone become one. Read it from top to bottom; run it in seconds.

    python examples/explain.py

Average the weights of two trained networks and you get noise, although both solve the task. The reason is that hidden
units have no names: unit 3 of one network may do what unit 17 of the other does. So before averaging, the units of one
have to be put into the order of the other, in every stored tensor at once, and without changing what it computes. That
takes four steps, and `otfuse` takes the same four for any transformer: find which places of which tensors belong to the
same units; prove it; find the order; average. Nothing here uses `otfuse`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

STREAM, INNER, CLASSES, STEPS = 256, 192, 3, 60
Weights = dict[str, torch.Tensor]


# 1. A network with a residual stream -------------------------------------------------------------------------------------
# `forward` is written with four operators that are given from outside. Given operators on numbers, it computes; given
# operators on units (section 3), the same lines tell which units meet. That is all there is to tracing.
def forward(op: Any, w: dict[str, Any], x: Any) -> Any:
    """Logits: points enter a stream, a block adds something to it, and it is read out."""
    stream = op.relu(op.linear(x, w["embed.weight"], w["embed.bias"]))
    inner = op.relu(op.linear(op.norm(stream, w["first.gain"]), w["up.weight"], w["up.bias"]))
    branch = op.relu(op.linear(inner, w["down.weight"], w["down.bias"]))
    stream = op.add(stream, branch)
    return op.linear(op.norm(stream, w["last.gain"]), w["head.weight"], w["head.bias"])


class OnNumbers:
    """The operators as usual. ``seen`` keeps what each of them gave, in order."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return self._keep(x @ weight.T + bias)

    def relu(self, x: torch.Tensor) -> torch.Tensor:
        return self._keep(x.relu())

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self._keep(x + y)

    def norm(self, x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return self._keep(x / x.square().mean(1, keepdim=True).add(1e-6).sqrt() * gain)

    def _keep(self, value: torch.Tensor) -> torch.Tensor:
        self.seen.append(value.detach())
        return value


def drawn(seed: int) -> Weights:
    """A network that has learned nothing."""
    chance = torch.Generator().manual_seed(seed)
    shapes = {"embed": (STREAM, 2), "up": (INNER, STREAM), "down": (STREAM, INNER), "head": (CLASSES, STREAM)}
    weights = {}
    for name, (rows, columns) in shapes.items():
        scale = columns**-0.5
        weights[f"{name}.weight"] = scale * torch.randn(rows, columns, generator=chance, dtype=torch.float64)
        weights[f"{name}.bias"] = 0.3 * torch.randn(rows, generator=chance, dtype=torch.float64)
    return weights | {f"{name}.gain": torch.ones(STREAM, dtype=torch.float64) for name in ("first", "last")}


# 2. A task, and two parents that learn it alone ----------------------------------------------------------------------------
def spirals(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points on three arms of a spiral, and which arm each is on."""
    chance = np.random.default_rng(seed)
    arm, along = chance.integers(0, CLASSES, count), chance.uniform(0.1, 1, count)
    angle = 2 * np.pi * arm / CLASSES + 4 * along + 0.12 * chance.standard_normal(count)
    points = along[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return torch.from_numpy(points), torch.from_numpy(arm)


def loss_of(weights: Weights, points: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats."""
    return torch.nn.functional.cross_entropy(forward(OnNumbers(), weights, points), labels)


def trained(seed: int) -> Weights:
    """A network that has learned the task from points of its own."""
    points, labels = spirals(400, seed)
    weights = {name: tensor.requires_grad_() for name, tensor in drawn(seed).items()}
    optimiser = torch.optim.AdamW(weights.values(), lr=3e-3, weight_decay=1e-2)
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss_of(weights, points, labels).backward()
        optimiser.step()
    return {name: tensor.detach() for name, tensor in weights.items()}


# 3. Which places belong to the same units: derived by running the network on symbols ---------------------------------------
# A *space* is a set of interchangeable units. To begin with, every axis of every tensor has a space of its own. An operator
# makes two spaces one where it needs the same unit at the same place, and nothing else does: equal sizes mean nothing.
class OnUnits:
    """The operators on spaces: a value is the number of the space that its last axis runs over."""

    def __init__(self, weights: Weights) -> None:
        self._same: list[int] = []  # space -> the space that it was found equal to, or itself
        self.stored = {name: tuple(self.fresh() for _ in tensor.shape) for name, tensor in weights.items()}
        self.seen: list[int] = []

    def fresh(self) -> int:
        self._same.append(len(self._same))
        return len(self._same) - 1

    def find(self, space: int) -> int:
        while self._same[space] != space:
            space = self._same[space]
        return space

    def unify(self, x: int, y: int) -> int:
        self._same[self.find(x)] = self.find(y)
        return y

    def linear(self, x: int, weight: tuple[int, int], bias: tuple[int]) -> int:
        self.unify(x, weight[1])  # it reads with its columns: consumes
        return self._keep(self.unify(bias[0], weight[0]))  # and writes with its rows: produces

    def relu(self, x: int) -> int:
        return self._keep(x)  # unit by unit: whatever the order, it stays

    def add(self, x: int, y: int) -> int:
        return self._keep(self.unify(x, y))  # a residual sum: unit i is added to unit i

    def norm(self, x: int, gain: tuple[int]) -> int:
        return self._keep(self.unify(x, gain[0]))  # a gain scales unit i; the mean does not care about the order

    def _keep(self, space: int) -> int:
        self.seen.append(space)
        return space


@dataclass(frozen=True)
class Space:
    """Interchangeable units: where they are stored (tensor, axis), and which values of the forward pass hold them."""

    size: int
    members: tuple[tuple[str, int], ...]
    values: tuple[int, ...]


def spaces_of(weights: Weights) -> list[Space]:
    """All spaces whose order carries no meaning, derived."""
    op = OnUnits(weights)
    inputs = op.fresh()
    outputs = forward(op, op.stored, inputs)
    pinned = {op.find(inputs), op.find(outputs)}  # the world outside knows coordinates and classes by number
    members: dict[int, list[tuple[str, int]]] = {}
    for name, axes in op.stored.items():
        for axis, space in enumerate(axes):
            members.setdefault(op.find(space), []).append((name, axis))
    seen = [op.find(space) for space in op.seen]
    return [
        Space(weights[found[0][0]].shape[found[0][1]], tuple(found), tuple(i for i, s in enumerate(seen) if s == space))
        for space, found in members.items()
        if space not in pinned
    ]


# 4. Proof: another order in all places changes nothing, in all but one it does ---------------------------------------------
def reordered(weights: Weights, space: Space, order: np.ndarray, skip: tuple[str, int] | None = None) -> Weights:
    """The weights with unit ``order[i]`` of the space at place ``i``, in every member except ``skip``."""
    moved = dict(weights)
    for name, axis in space.members:
        if (name, axis) != skip:
            moved[name] = moved[name].index_select(axis, torch.from_numpy(order))
    return moved


def proof(weights: Weights, spaces: list[Space], points: torch.Tensor) -> tuple[float, float]:
    """Relative change of the outputs: the largest when whole spaces move, the least when one member is left out."""
    chance, before = np.random.default_rng(0), forward(OnNumbers(), weights, points)
    whole, partly = [], []
    for space in spaces:
        order = np.roll(chance.permutation(space.size), 1)
        tries = [reordered(weights, space, order)]
        tries += [reordered(weights, space, order, skip=member) for member in space.members]
        changes = [float((forward(OnNumbers(), moved, points) - before).norm() / before.norm()) for moved in tries]
        whole.append(changes[0])
        partly += changes[1:]
    return max(whole), min(partly)


# 5. Alignment: the order in which the source's units resemble the anchor's most ---------------------------------------------
def aligned(source: Weights, anchor: Weights, spaces: list[Space], points: torch.Tensor) -> Weights:
    """The source in the anchor's order, compared by what units say about the same unlabelled points.

    Sending units to units at the least total cost is optimal transport with equal masses; its exact solution is an
    assignment. Costs are one minus the correlation.
    """
    ours, theirs = OnNumbers(), OnNumbers()
    forward(ours, anchor, points)
    forward(theirs, source, points)
    for space in spaces:
        a, b = (torch.cat([standardised(op.seen[i]) for i in space.values]) for op in (ours, theirs))
        cost = 1 - a.T @ b / len(a)
        source = reordered(source, space, linear_sum_assignment(cost.numpy())[1])
    return source


def standardised(value: torch.Tensor) -> torch.Tensor:
    """Every unit with mean zero and deviation one over the points."""
    return (value - value.mean(0)) / (value.std(0) + 1e-9)


# 6. All of it ------------------------------------------------------------------------------------------------------------
def average(one: Weights, other: Weights) -> Weights:
    """The mean of what has the same name and place."""
    return {name: (tensor + other[name]) / 2 for name, tensor in one.items()}


def main() -> dict[str, Any]:
    """Everything that is claimed above, as figures."""
    anchor, source = trained(1), trained(2)
    points, labels = spirals(2000, 3)  # nobody has seen these
    probe, _ = spirals(400, 4)  # nor these, and their labels are not read
    spaces = spaces_of(anchor)
    whole, partly = proof(anchor, spaces, probe)
    carried = aligned(source, anchor, spaces, probe)
    models = {
        "anchor": anchor, "source": source, "source, aligned": carried,
        "plain average": average(anchor, source), "aligned average": average(anchor, carried),
    }  # fmt: skip
    losses = {name: float(loss_of(weights, points, labels)) for name, weights in models.items()}
    return {"spaces": spaces, "moved whole": whole, "one member left out": partly, "losses": losses}


if __name__ == "__main__":
    found = main()
    for space in found["spaces"]:
        print(f"{space.size} units in {', '.join(f'{name} axis {axis}' for name, axis in space.members)}")
    whole, partly = found["moved whole"], found["one member left out"]
    print(
        f"another order everywhere changes the outputs by {whole:.0e}, everywhere but in one place by {partly:.2f} at least"
    )
    for name, loss in found["losses"].items():
        print(f"{name:16} {loss:.3f} nats")
