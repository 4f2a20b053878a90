"""Modules in which the order of some hidden units matters, hidden behind operators that look harmless."""

# mypy: disable-error-code="no-any-return"
# A call of an nn.Module has no type; the forwards below are examples of user code, which does not cast.

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from otfuse.testing.record import Example, normal

if TYPE_CHECKING:
    from collections.abc import Callable

    Step = Callable[[nn.ModuleDict, Tensor], Tensor]


class Sandwich(nn.Module):
    """``enter`` (7 to 6), a step under test, ``middle`` (6 to 9, always free), ``leave`` (9 to 5)."""

    def __init__(self, step: Step, extra: Callable[[], dict[str, nn.Module]] = dict, middle: int = 6) -> None:
        super().__init__()
        self.enter, self.middle, self.leave = nn.Linear(7, 6), nn.Linear(middle, 9), nn.Linear(9, 5)
        self.extra = nn.ModuleDict(extra())
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        """``x[..., 7]`` to ``[..., 5]``."""
        hidden = self.step(self.extra, self.enter(x))
        return self.leave(torch.tanh(self.middle(hidden)))


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _triangle(_: nn.ModuleDict, h: Tensor) -> Tensor:
    return torch.tril(h[:, :, None] * h[:, None, :]).sum(-1)


def _identity(_: nn.ModuleDict, h: Tensor) -> Tensor:
    eye = torch.eye(6, dtype=h.dtype)
    return ((h[:, :, None] * eye) @ h[:, :, None]).squeeze(-1)


def _counted(_: nn.ModuleDict, h: Tensor) -> Tensor:
    return h * (torch.arange(6) > 2)


def _one_hot(_: nn.ModuleDict, h: Tensor) -> Tensor:
    return h * functional.one_hot(torch.arange(1), 6)


def _written_mask(_: nn.ModuleDict, h: Tensor) -> Tensor:
    mask = torch.ones(6, dtype=h.dtype)
    mask[3] = 0.5
    return h * mask


def _written_slice(_: nn.ModuleDict, h: Tensor) -> Tensor:
    h = h.clone()
    h[:, :2].mul_(0.5)
    return h


def _written_ramp(_: nn.ModuleDict, h: Tensor) -> Tensor:
    h = h.clone()
    h[:, :].mul_(torch.arange(1, 7))
    return h


def _put_mask(_: nn.ModuleDict, h: Tensor) -> Tensor:
    mask = torch.ones(6, dtype=h.dtype)
    mask[torch.tensor([1, 3])] = 0.5
    return h * mask


def _counted_ones(_: nn.ModuleDict, h: Tensor) -> Tensor:
    return h * torch.ones(6, dtype=h.dtype).cumsum(0)


def _repeated_count(_: nn.ModuleDict, h: Tensor) -> Tensor:
    return h * torch.arange(1, 4).repeat(2)


def _stepped_count(_: nn.ModuleDict, h: Tensor) -> Tensor:
    return h * torch.arange(1, 4).repeat_interleave(2)


def _written_column(_: nn.ModuleDict, h: Tensor) -> Tensor:
    h = h.clone()
    h[:, 0] = 0.5
    return h


def _flip(_: nn.ModuleDict, h: Tensor) -> Tensor:
    return h * h.flip(-1)


def _table(_: nn.ModuleDict, h: Tensor) -> Tensor:
    return h + torch.tanh(h[:, torch.tensor([3, 0, 4, 1, 2, 5])])


def _roll(_: nn.ModuleDict, h: Tensor) -> Tensor:
    return h * h.roll(1, -1)


def _sorted(_: nn.ModuleDict, h: Tensor) -> Tensor:
    return h.sort(-1).values


def _prelu(extra: nn.ModuleDict, h: Tensor) -> Tensor:
    return extra["prelu"](h)


def _batch_norm(extra: nn.ModuleDict, h: Tensor) -> Tensor:
    return extra["norm"](h)


def _neighbours(_: nn.ModuleDict, h: Tensor) -> Tensor:
    return functional.local_response_norm(h[:, :, None], 3, alpha=1.0).squeeze(-1)


def _slide(extra: nn.ModuleDict, h: Tensor) -> Tensor:
    return extra["conv"](h.unsqueeze(1)).squeeze(1)


def _smooth(_: nn.ModuleDict, h: Tensor) -> Tensor:
    return functional.avg_pool1d(h.unsqueeze(1), 3, stride=1, padding=1).squeeze(1)


def _softmax(extra: nn.ModuleDict, h: Tensor) -> Tensor:
    return extra["mix"](h.softmax(-1))


def _argmax(extra: nn.ModuleDict, h: Tensor) -> Tensor:
    return h + extra["table"](h.argmax(-1))


def _recut(extra: nn.ModuleDict, h: Tensor) -> Tensor:
    first, rest = torch.split(torch.cat([h, extra["other"](torch.tanh(h))], -1), [4, 8], -1)
    return torch.cat([rest, first], -1)


def _parts(extra: nn.ModuleDict, h: Tensor) -> Tensor:
    return h + extra["part"](torch.relu(h[:, :4]))


def _repeat(_: nn.ModuleDict, h: Tensor) -> Tensor:
    return h.repeat(1, 2)


def _shuffle(_: nn.ModuleDict, h: Tensor) -> Tensor:
    return h + h.view(-1, 2, 3).transpose(1, 2).reshape(-1, 6)


def _merged(extra: nn.ModuleDict, h: Tensor) -> Tensor:
    return extra["unit"](h.reshape(-1, 1)).view(-1, 6)


def _normalised(extra: nn.ModuleDict, h: Tensor) -> Tensor:
    return extra["norm"](extra["wide"](h).view(-1, 4, 6)).flatten(1)


def _standardised(extra: nn.ModuleDict, h: Tensor) -> Tensor:
    heads = extra["wide"](h).view(-1, 4, 6).softmax(-1)
    return (heads * extra["unit"](torch.ones(1, dtype=h.dtype))).flatten(1)


def _whole(extra: nn.ModuleDict, h: Tensor) -> Tensor:
    return extra["norm"](extra["wide"](h).view(-1, 4, 6)).flatten(1)


def _groups(extra: nn.ModuleDict, h: Tensor) -> Tensor:
    return extra["norm"](extra["wide"](h)).view(-1, 4, 6).amax(1).repeat(1, 4)


def _distance(extra: nn.ModuleDict, h: Tensor) -> Tensor:
    return torch.cdist(h, _weight(extra["points"]))


def _padded(_: nn.ModuleDict, h: Tensor) -> Tensor:
    return functional.pad(h, (2, 0))[:, :6] + h


def _diagonal(_: nn.ModuleDict, h: Tensor) -> Tensor:
    return (h[:, :, None] * torch.tanh(h)[:, None, :]).diagonal(dim1=1, dim2=2)


def _diagonal_off(_: nn.ModuleDict, h: Tensor) -> Tensor:
    product = h[:, :, None] * torch.tanh(h)[:, None, :]
    return functional.pad(product.diagonal(offset=1, dim1=1, dim2=2), (0, 1))


def _position(_: nn.ModuleDict, h: Tensor) -> Tensor:
    return h.expand(6, 6) * torch.triu(torch.ones(6, 6, dtype=h.dtype))


def _running(_: nn.ModuleDict, h: Tensor) -> Tensor:
    return h + torch.logcumsumexp(h, -1)


def _scattered(_: nn.ModuleDict, h: Tensor) -> Tensor:
    index = torch.tensor([[1, 0, 2, 5, 4, 3]]).expand(len(h), 6)
    return h + torch.zeros_like(h).scatter(1, index, torch.tanh(h))


def _low_rank(extra: nn.ModuleDict, h: Tensor) -> Tensor:
    weight = _weight(extra["base"]) + _weight(extra["up"]) @ _weight(extra["down"])
    return functional.linear(h, weight)


def _case(
    name: str,
    step: Step,
    spaces: str | None = "1x9",
    *,
    extra: Callable[[], dict[str, nn.Module]] = dict,
    middle: int = 6,
    shape: tuple[int, ...] = (3, 7),
    note: str = "",
) -> Example:
    return Example(name, lambda: Sandwich(step, extra, middle), lambda: (normal(*shape),), spaces, note=note)


def _wide(**more: Callable[[], nn.Module]) -> Callable[[], dict[str, nn.Module]]:
    return lambda: {"wide": nn.Linear(6, 24)} | {name: make() for name, make in more.items()}


EXAMPLES = (
    _case("triangle", _triangle, None, note="half of an outer product"),
    _case("identity", _identity, None, note="a constant diagonal that happens to commute"),
    _case("counted", _counted, note="a mask made by counting"),
    _case("one_hot", _one_hot),
    _case(
        "written_mask", _written_mask, "1x2 1x3 1x9", note="ones, one of them overwritten: the others may be swapped"
    ),
    _case("written_slice", _written_slice, None, note="the first two units are scaled in place through a view"),
    _case("written_ramp", _written_ramp, note="all units are scaled in place through a view"),
    _case("put_mask", _put_mask, note="ones, two of them overwritten by index"),
    _case("counted_ones", _counted_ones, note="a running sum of ones counts"),
    _case("repeated_count", _repeated_count, "1x2/3 1x9", note="1, 2, 3, 1, 2, 3: equal factors may be swapped"),
    _case("stepped_count", _stepped_count, "1x2/3 1x9", note="1, 1, 2, 2, 3, 3"),
    _case("written_column", _written_column, None, note="one unit is overwritten"),
    _case("flip", _flip),
    _case("index_table", _table, note="units are read in a fixed order"),
    _case("roll", _roll),
    _case("sorted_units", _sorted, None, note="sorting forgets the order: free, or pinned"),
    _case(
        "prelu",
        _prelu,
        "1x6 1x9",
        extra=lambda: {"prelu": nn.PReLU(6)},
        shape=(2, 6, 7),
        note="slopes of tokens, not of units",
    ),
    _case("batch_norm", _batch_norm, "1x6 1x9", extra=lambda: {"norm": nn.BatchNorm1d(6)}, shape=(2, 6, 7)),
    _case("neighbours", _neighbours, note="each unit is divided by its neighbours"),
    _case("slide", _slide, extra=lambda: {"conv": nn.Conv1d(1, 1, 3, padding=1)}, note="a convolution over units"),
    _case("smooth", _smooth),
    _case("softmax", _softmax, "2x6 1x9", extra=lambda: {"mix": nn.Linear(6, 6)}),
    _case("argmax", _argmax, None, extra=lambda: {"table": nn.Embedding(6, 6)}, note="a unit's number is looked up"),
    _case("recut", _recut, "1x4 1x2 1x6 1x9", extra=lambda: {"other": nn.Linear(6, 6)}, middle=12),
    _case(
        "unequal_parts", _parts, "1x4 1x2 1x9", extra=lambda: {"part": nn.Linear(4, 6)}, note="a stream read in part"
    ),
    _case("repeat", _repeat, None, middle=12),
    _case("shuffle", _shuffle, note="units are added to themselves in another order"),
    _case("merged", _merged, "1x6 1x9", extra=lambda: {"unit": nn.Linear(1, 1)}, note="units are laid along the batch"),
    _case("head_norm", _normalised, "2x6 1x4 1x9", extra=_wide(norm=lambda: nn.LayerNorm(6)), middle=24),
    _case("head_softmax", _standardised, "2x6 1x4 1x9", extra=_wide(unit=lambda: nn.Linear(1, 6)), middle=24),
    _case("whole_norm", _whole, None, extra=_wide(norm=lambda: nn.LayerNorm((4, 6))), middle=24),
    _case("groups_clash", _groups, None, extra=_wide(norm=lambda: nn.GroupNorm(3, 24)), middle=24),
    _case("distance", _distance, None, extra=lambda: {"points": nn.Embedding(6, 6)}),
    _case("padded", _padded, note="units are shifted by padding"),
    _case("diagonal", _diagonal, None),
    _case("diagonal_off", _diagonal_off, None),
    _case("position", _position, shape=(6, 7), note="units times positions, both 6"),
    _case("running", _running, None),
    _case("scattered", _scattered, None),
    _case(
        "low_rank",
        _low_rank,
        "2x6 1x2 1x9",
        extra=lambda: {"base": nn.Linear(6, 6), "up": nn.Linear(2, 6), "down": nn.Linear(6, 2)},
    ),
)
