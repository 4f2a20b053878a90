"""Which layers of a program can be solved again, and why others are left as they are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from otfuse.calibrate.forms import form_of
from otfuse.calibrate.gains import gain_of
from otfuse.calibrate.uses import Place, Uses, memory_of
from otfuse.core.fold import fold
from otfuse.program.memory import written

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import fx

    from otfuse.calibrate.forms import Form
    from otfuse.core.graph import FlowGraph, Observation
    from otfuse.program.export import Program


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One use of a stored matrix, or of a gain, by the operators ``nodes``, of which the last gives the outputs.

    ``observation`` tells what predictions read of a value of the sizes ``observed`` (None: unknown); ``made_of`` are the inputs
    that the layer reads, by name. Of rows of experts ``picked`` is how they were picked: by which numbers, from how many tokens.
    """

    nodes: tuple[fx.Node, ...]
    form: Form
    weight: Place
    bias: Place | None
    observation: Observation | None
    observed: tuple[int, ...]
    made_of: frozenset[str]
    picked: tuple[fx.Node, int] | None = None

    @property
    def node(self) -> fx.Node:
        """What gives the outputs."""
        return self.nodes[-1]

    @property
    def name(self) -> str:
        """The stored tensor."""
        return self.weight.tensor

    @property
    def routing(self) -> tuple[fx.Node, ...]:
        """Of rows of experts: where each expert's end, and which token each of them is."""
        return () if self.form.ends is None or self.picked is None else (self.form.ends, self.picked[0])

    @property
    def token_count(self) -> int:
        """Of rows of experts: how many tokens they were picked from."""
        return 0 if self.picked is None else self.picked[1]


@dataclass(frozen=True, slots=True)
class Layers:
    """``groups``: layers that read the same value, in the order of the program; ``left``: tensor -> why it is not solved."""

    groups: tuple[tuple[Layer, ...], ...]
    left: dict[str, str]

    @property
    def solved(self) -> tuple[str, ...]:
        """Stored tensors that are solved, biases among them, in order."""
        places = [p for group in self.groups for layer in group for p in (layer.weight, layer.bias)]
        return tuple(dict.fromkeys(place.tensor for place in places if place is not None))

    def notes(self) -> list[str]:
        """What is not solved, one sentence per reason."""
        reasons: dict[str, list[str]] = {}
        for tensor, reason in self.left.items():
            reasons.setdefault(reason, []).append(tensor)
        told = {why: [same.name for same in fold(sorted(names), str, lambda _: "")] for why, names in reasons.items()}
        return [f"not calibrated, {why}: {', '.join(names)}" for why, names in told.items()]


def calibrated_layers(program: Program, graph: FlowGraph, *, norms: bool) -> Layers:
    """What calibrating would solve in a model of this program and flow graph, and what it would leave, with the reason.

    A tensor is solved if every operator that reads it multiplies by it plainly; one matrix used several times is solved once.
    Gains of norms and of branches are solved with ``norms``.
    """
    uses = Uses(program)
    observed = _observed(graph)
    found, left = list[Layer](), dict[str, str]()
    for node in uses.steps:
        layer = _layer(node, uses, observed, program.buffers if norms else None)
        if isinstance(layer, Layer):
            found.append(layer)
        elif layer is not None:
            left[layer[0]] = layer[1]
    while True:
        odd = _conflicts(found, uses)
        if not odd:
            break
        left |= odd
        found = [layer for layer in found if layer.weight.tensor not in odd]
    found = _with_tokens(found, left)
    layers = Layers(tuple(_groups(found, program)), left)
    known = {*layers.solved, *left, *program.buffers}
    kinds = f"no linear layer{' or gain' * norms} that can be solved holds it"
    left |= {name: kinds for name in dict.fromkeys(program.ties.values()) if name in uses.readers and name not in known}
    return layers


def _observed(graph: FlowGraph) -> dict[str, Observation]:
    """Observations by value; where parts of one layer are read at other places, any of these counts."""
    found: dict[str, Observation] = {}
    for node in graph.nodes:
        seen = node.observation
        if seen is None:
            continue
        other = found.get(seen.value)
        if other is not None and other.dims == seen.dims:
            both = None if other.read is None or seen.read is None else other.read | seen.read
            seen = replace(seen, read=both)
        found[seen.value] = seen
    return found


def _layer(
    node: fx.Node, uses: Uses, observed: dict[str, Observation], buffers: frozenset[str] | None
) -> Layer | tuple[str, str] | None:
    """The layer that an operator is; the tensor and the reason if it is one that cannot be solved; None if it is none.

    With ``buffers`` gains count, but for these, which nothing trained.
    """
    form = form_of(node, lambda a: bool(uses.depends(a)))
    if form is None and buffers is not None:
        form = gain_of(node, lambda a: bool(uses.depends(a) - buffers))
    if form is None:
        return None
    weight = _seen_as(form.weight, form.matrix, uses)
    if weight is None:
        return min(uses.depends(form.weight)), "its matrix is computed from what is stored"
    bias = None if form.bias is None else _seen_as(form.bias, form.offset, uses)
    if form.bias is not None and bias is None:
        return weight.tensor, "its bias is computed"
    nodes = (node,) if form.adds is None else (node, form.adds)
    at = next((n for n in (*nodes[::-1], *nodes[-1].users) if n.name in observed), nodes[-1])
    seen = observed.get(at.name)
    if seen is not None and seen.read is not None and not seen.read.any():
        return weight.tensor, "no prediction reads it"
    return Layer(nodes, form, weight, bias, seen, tuple(at.meta["val"].shape), uses.inputs[form.x])


def _seen_as(node: fx.Node, view: Any, uses: Uses) -> Place | None:
    """The place of an operand, if the view that it is solved in shares its memory."""
    place, held = uses.place(node), node.meta["val"]
    if place is None:
        return None
    try:
        seen = view(held)
    except (RuntimeError, IndexError):
        return None
    same = memory_of(seen) == memory_of(held) and seen.numel() == held.numel() and 0 not in seen.stride()
    return place if same else None


def _conflicts(found: Sequence[Layer], uses: Uses) -> dict[str, str]:
    """Tensors that something else reads too, or of which layers read parts that overlap."""
    nodes = {node for layer in found for node in layer.nodes}
    of, odd = dict[Place, set[Any]](), dict[str, str]()
    biases = dict[Place, set[Place]]()
    for layer in found:
        of.setdefault(layer.weight, set()).add((layer.bias, layer.form.shift))
        if layer.bias is not None:
            biases.setdefault(layer.bias, set()).add(layer.weight)
        if uses.readers[layer.weight.tensor] - nodes:
            odd[layer.weight.tensor] = "something beside linear layers reads it (a table that is tied)"
        elif layer.bias is not None and uses.readers[layer.bias.tensor] - nodes:
            odd[layer.weight.tensor] = "something else reads its bias"
        elif len(of[layer.weight]) > 1 or (layer.bias is not None and len(biases[layer.bias]) > 1):
            odd[layer.weight.tensor] = "its matrix and its bias are shared differently"
    for places in (of, biases):
        for tensor in {place.tensor for place in places}:
            parts = [place.entries(uses.sizes[tensor]) for place in places if place.tensor == tensor]
            if len(parts) > 1 and len(torch.cat(parts).unique()) < sum(map(len, parts)):
                odd |= {
                    layer.weight.tensor: "layers read parts of it that overlap"
                    for layer in found
                    if tensor in (layer.weight.tensor, layer.bias and layer.bias.tensor)
                }
    return odd


def _with_tokens(found: Sequence[Layer], left: dict[str, str]) -> list[Layer]:
    """Layers of experts with the value that numbers their rows; those where it is not found are left."""
    known: dict[fx.Node, tuple[fx.Node, int]] = {}
    made = []
    for layer in found:
        ends = layer.form.ends
        if ends is not None:
            numbers = known.get(ends) or _numbers(layer.form.x)
            if numbers is None:
                left[layer.name] = "which token a row of an expert is cannot be told"
                continue
            known[ends] = numbers
            layer = replace(layer, picked=numbers)
        made.append(layer)
    return made


def _numbers(x: Any) -> tuple[fx.Node, int] | None:
    """The numbers by which rows were picked to make ``x`` (casts apart), and from how many."""
    while x.op == "call_function":
        if x.target is torch.ops.aten.index.Tensor:
            return (x.args[1][0], x.args[0].meta["val"].shape[0]) if len(x.args[1]) == 1 else None
        if x.target is torch.ops.aten.index_select.default:
            return (x.args[2], x.args[0].meta["val"].shape[0]) if x.args[1] == 0 else None
        if len(x.all_input_nodes) != 1 or x.meta["val"].shape != x.all_input_nodes[0].meta["val"].shape:
            return None
        x = x.all_input_nodes[0]
    return None


def _groups(found: Sequence[Layer], program: Program) -> Iterator[tuple[Layer, ...]]:
    """Layers that read the same value in the same form, with no write between them: they share its moments.

    A matrix that is used several times is alone.
    """
    order = {node: i for i, node in enumerate(program.graph.nodes)}
    writes = [order[node] for node in program.graph.nodes if written(node)]
    uses, open_groups = Counter(layer.weight for layer in found), dict[Any, list[Layer]]()
    groups: list[list[Layer]] = []
    for layer in found:
        form = layer.form
        key = (form.x, form.inputs, None if layer.observation is None else _mask(layer.observation))
        group = open_groups.get(key)
        if (
            group is None
            or uses[layer.weight] > 1
            or any(order[group[0].node] < at < order[layer.node] for at in writes)
        ):
            group = []
            groups.append(group)
            if uses[layer.weight] == 1:
                open_groups[key] = group
        group.append(layer)
    yield from map(tuple, groups)


def _mask(seen: Observation) -> bytes | None:
    return None if seen.read is None else seen.read.tobytes()
