"""What a module asks of its inputs' values while it is traced: a grid that it loops over, places that it counts.

A traced input has a shape and no values. Where forward asks for some (`.tolist()`, `if x.any()`, `x[mask]`), it is answered
with those of the example: real values are carried along for whatever is computed from the inputs alone. The program then
holds for inputs that give the same answers, so every question is kept with its answer (`Program.asked`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_T = torch.Tensor
_QUESTIONS = (_T.item, _T.tolist, _T.__bool__, _T.__int__, _T.__float__, _T.__index__, _T.numpy, _T.__contains__)
_REPEATS = (torch.repeat_interleave, _T.repeat_interleave)
_IN_PLACE = (
    "__setitem__",
    *(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "and", "or", "xor")),
)
_MAKERS = (torch.arange, torch.tensor, torch.zeros, torch.ones, torch.full, torch.linspace)
_SIZED_BY_VALUES = (
    torch.nonzero, _T.nonzero, torch.argwhere, _T.argwhere, torch.unique, _T.unique, torch.unique_consecutive,
    _T.unique_consecutive, torch.repeat_interleave, _T.repeat_interleave, torch.bincount, _T.bincount, torch.tensor,
)  # fmt: skip


class _Real(NamedTuple):
    value: torch.Tensor
    given: bool  # it depends on an input: with another one it may be another


class Known(TorchFunctionMode):
    """Inside, what is computed from inputs alone answers with the values that ``pairs`` (traced, real) give.

    ``asked`` holds the tensors that were asked, as they are traced, with the answers.
    """

    def __init__(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        super().__init__()
        self._real: Any = WeakIdKeyDictionary()
        self._asked: dict[tuple[int, int], torch.Tensor] = {}
        self.asked: list[tuple[torch.Tensor, torch.Tensor]] = []
        for traced, real in pairs:
            if isinstance(traced, torch.Tensor) and isinstance(real, torch.Tensor):
                self._real[traced] = _Real(real, given=True)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _REPEATS and "dim" in kwargs and len(args) == 2:
            args = (*args, kwargs.pop("dim"))
        if func is _T.__iter__:  # its steps are seen one by one
            with self:
                return iter(args[0].unbind(0))
        if func in (_T.__getitem__, _T.__setitem__) and _has_mask(args[1]):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = (args[0], tuple(new for part in index for new in self._places(part)), *args[2:])
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if not all(tensor in self._real for tensor in tensors):
            return self._unknown(func, args, kwargs)
        if func in _QUESTIONS:
            return self._answer(func, args, kwargs, tensors)
        if tensors and (func in _SIZED_BY_VALUES or (func is torch.where and len(args) == 1)):
            device = tensors[0].device
            return tree_map(lambda made: self._constant(made, device), self._answer(func, args, kwargs, tensors))
        result = func(*args, **kwargs)
        if tensors or func in _MAKERS:
            self._learn(result, func, args, kwargs, given=any(self._real[tensor].given for tensor in tensors))
        return result

    def _unknown(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Something comes from a parameter; what it is written into does too, from then on."""
        if func in _REPEATS and len(args) > 2 and isinstance(args[1], torch.Tensor) and args[1] in self._real:
            with self:
                rows = torch.arange(args[0].shape[args[2]], device=args[0].device)
                return args[0].index_select(args[2], rows.repeat_interleave(args[1]))
        result = func(*args, **kwargs)
        if _writes(func):
            self._forget(args[0])
        return result

    def _places(self, part: Any) -> Iterable[Any]:
        """A known mask as the places that it picks, which are constants; anything else as it is."""
        if not _has_mask(part) or part not in self._real:
            return (part,)
        return (
            self._constant(n, part.device) for n in self._answer(torch.nonzero, (part,), {"as_tuple": True}, [part])
        )

    def _answer(self, func: Any, args: Any, kwargs: Any, tensors: Iterable[torch.Tensor]) -> Any:
        for tensor in tensors:
            key = id(tensor), tensor._version  # noqa: SLF001  # it may be written into later
            if self._real[tensor].given and key not in self._asked:
                self._asked[key] = tensor
                self.asked.append((tensor.clone(), self._computed(torch.clone, (tensor,), {})))
        return self._computed(func, args, kwargs)

    def _computed(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        args, kwargs = tree_map(self._as_real, (args, kwargs))
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():  # noqa: SLF001
            return func(*args, **kwargs)

    def _as_real(self, value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device("cpu")
        return self._real[value].value if isinstance(value, torch.Tensor) else value

    def _constant(self, made: Any, device: torch.device) -> Any:
        if not isinstance(made, torch.Tensor):
            return made
        traced = torch.tensor(made.tolist(), dtype=made.dtype, device=device)
        self._real[traced] = _Real(made, given=False)
        return traced

    def _learn(self, result: Any, func: Any, args: Any, kwargs: Any, *, given: bool) -> None:
        try:
            real = self._computed(func, args, kwargs)
        except Exception:  # noqa: BLE001  # what cannot be computed beside is not known
            if _writes(func):
                self._forget(args[0])
            return
        if _writes(func) and given:
            for tensor in self._sharing(args[0]):
                self._real[tensor] = self._real[tensor]._replace(given=True)
        (traced, form), (values, other) = tree_flatten(result), tree_flatten(real)
        for tensor, value in zip(traced, values, strict=True) if form == other else ():
            if isinstance(tensor, torch.Tensor) and isinstance(value, torch.Tensor) and tensor.shape == value.shape:
                held = self._real.get(tensor)
                self._real[tensor] = _Real(value, given or (held is not None and held.given))

    def _forget(self, written: Any) -> None:
        """What is written into, and all that shares its memory, is no longer known."""
        for tensor in self._sharing(written):
            del self._real[tensor]

    def _sharing(self, written: Any) -> list[torch.Tensor]:
        held = self._real.get(written) if isinstance(written, torch.Tensor) else None
        memory = None if held is None else held.value.untyped_storage().data_ptr()
        return [t for t, real in self._real.items() if real.value.untyped_storage().data_ptr() == memory]


def _writes(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def _has_mask(index: Any) -> bool:
    return any(isinstance(i, torch.Tensor) and i.dtype is torch.bool for i in tree_leaves(index))
