"""What modules keep beside their stored tensors: as it was after whatever is run, and free of what forward computes."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict, defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn

_MAPPINGS = (dict, OrderedDict, defaultdict)
_MUTABLE = (*_MAPPINGS, list, set)  # these very types: what a subclass allows is not known


class Slot(NamedTuple):
    """An attribute of a module, by the module's path, that holds tensors which are neither parameters nor buffers.

    Where nothing was computed yet it is ``absent``, or else empty: None, a container without tensors.
    """

    module: str
    name: str
    absent: bool = False


@contextlib.contextmanager
def evaluating(model: nn.Module, without: Iterable[Slot] = ()) -> Iterator[None]:
    """Evaluation mode inside, with nothing in the slots ``without``; every module is as it was afterwards.

    That is all its attributes: mode, numbers, tensors with their values, and what its dicts, lists and sets hold.
    """
    holders = [vars(module) for module in model.modules()]
    containers = [(found, _plainly(found)) for found in _containers(holders)]
    values = [(tensor, tensor._version, tensor.detach().clone()) for tensor in _plain(model, holders)]  # noqa: SLF001  # torch has no public name for it
    try:
        model.eval()
        for slot in without:
            _forget(vars(model.get_submodule(slot.module)), slot)
        yield
    finally:
        for container, before in containers:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(before)
        for tensor, version, before in values:
            if tensor._version != version:  # noqa: SLF001
                tensor.data.copy_(before)


def copied(model: nn.Module, without: Iterable[Slot] = (), *, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy with nothing in the slots ``without``, in the model's own modes; of floating type ``dtype`` if given."""
    modes = {name: module.training for name, module in model.named_modules()}
    with evaluating(model, without):
        memo: dict[int, Any] = {}
        for tensor in _plain(model, [vars(module) for module in model.modules()]):  # torch copies no result of autograd
            memo[id(tensor)] = tensor.detach().clone()
            if dtype is not None and tensor.is_floating_point():
                memo[id(tensor)] = memo[id(tensor)].to(dtype)
        new = copy.deepcopy(model, memo)
    for name, module in new.named_modules():
        module.training = modes[name]
    return new if dtype is None else new.to(dtype)


def slots(model: nn.Module) -> list[list[Slot]]:
    """All slots, those of one attribute of one class together: they are of one kind."""
    groups: dict[tuple[type, str], list[Slot]] = {}
    stored = _stored(model)
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if any(id(tensor) not in stored for tensor in _tensors([value])):
                groups.setdefault((type(module), name), []).append(Slot(path, name))
    return list(groups.values())


def held(model: nn.Module, slot: Slot) -> list[torch.Tensor]:
    """The tensors in a slot."""
    return list(_tensors([vars(model.get_submodule(slot.module)).get(slot.name)]))


def _forget(holder: dict[str, Any], slot: Slot) -> None:
    value: Any = holder.get(slot.name)
    if slot.absent:
        holder.pop(slot.name, None)
    elif type(value) in _MAPPINGS:
        for key in [key for key, item in value.items() if any(True for _ in _tensors([item]))]:
            del value[key]
    elif type(value) in _MUTABLE:
        value.clear()
    else:
        holder[slot.name] = None


def _plainly(container: Any) -> Any:
    return (dict if isinstance(container, dict) else list if isinstance(container, list) else set)(container)


def _stored(model: nn.Module) -> set[int]:
    return {id(tensor) for tensor in (*model.parameters(), *model.buffers())}


def _plain(model: nn.Module, holders: Iterable[Any]) -> list[torch.Tensor]:
    """Tensors that are neither parameters nor buffers, each once."""
    stored = _stored(model)
    return list({id(t): t for t in _tensors(holders) if id(t) not in stored}.values())


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    yield from (value for value in _walked(values) if isinstance(value, torch.Tensor))


def _containers(values: Iterable[Any]) -> list[Any]:
    return [value for value in _walked(values) if type(value) in _MUTABLE]


def _walked(values: Iterable[Any]) -> Iterator[Any]:
    """The values and all that their containers hold, each once."""
    todo, seen = list(values), dict[int, Any]()
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        yield value
        if type(value) in _MUTABLE or isinstance(value, tuple):
            todo += value.values() if isinstance(value, dict) else value
