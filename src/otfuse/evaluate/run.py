"""Running a model on arrays: how they are passed, which output holds the logits, on which device, in which mode."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from otfuse.errors import DataError, DeviceError
from otfuse.program import state

NOT_PASSED = frozenset({"special_tokens_mask"})  # arrays that say something about the data and are no input
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def find_device(name: str | torch.device) -> torch.device:
    """The device of that name; DeviceError if there is none such on this machine, or it holds no numbers."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError):
        raise DeviceError(
            f"device {str(name)!r} does not exist on this machine; use cpu, or a device that torch finds"
        ) from None
    if device.type == "meta":
        raise DeviceError(
            "device 'meta' holds shapes and no numbers, so nothing can be computed there; use cpu, or a device that torch finds"
        )
    return device


@contextmanager
def evaluating(models: list[nn.Module], device: torch.device) -> Iterator[None]:
    """The models in evaluation mode and on ``device``, without gradients; all is as it was afterwards."""
    with ExitStack() as stack, torch.no_grad():
        for model in models:
            stack.enter_context(state.evaluating(model))
            home = next((p.device for p in model.parameters()), device)
            if home != device:
                stack.callback(model.to, home)
                model.to(device)
        yield


def unwrapped_forward(model: nn.Module) -> list[inspect.Parameter]:
    """The parameters of the model's ``forward``, in order, without ``self``."""
    return list(inspect.signature(model.forward).parameters.values())


def positional(model: nn.Module, names: list[str]) -> bool:
    """Whether the only array is passed by position; DataError if an array is no input of the model.

    Arrays go in by keyword. A plain module with one input may call it anything, so one array needs no right name.
    """
    parameters = unwrapped_forward(model)
    known = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY)]
    unknown = [name for name in names if name not in known]
    if not unknown:
        return False
    from transformers import PreTrainedModel  # slow to import, and not needed where weights are only averaged

    library = isinstance(model, PreTrainedModel)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if takes_any and (not known or not library):
        return False
    takes_one = any(p.kind in _POSITIONAL or p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(names) == 1 and takes_one and not library:
        return True
    close = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    allowed = ", ".join(n for n in known if n not in ("labels", "return_dict"))
    raise DataError(f"array {unknown[0]!r} is not an input of {type(model).__name__}; {hint}its inputs are: {allowed}")


def to_tensors(arrays: Mapping[str, NDArray[Any]], model: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """The arrays as tensors on ``device``: floating ones in the model's own precision, signed integers as int64."""
    wanted = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)
    return {name: _tensor(name, array, wanted).to(device) for name, array in arrays.items() if name not in NOT_PASSED}


def _tensor(name: str, array: NDArray[Any], floating: torch.dtype) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise DataError(f"array {name!r} holds {array.dtype}; a model reads numbers only: leave it out or convert it")
    if array.dtype.kind in "iu":
        array = array.astype(np.int64)
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.to(floating) if tensor.is_floating_point() else tensor


def call(model: nn.Module, inputs: dict[str, Tensor], *, by_position: bool) -> Tensor:
    """The logits of ``model`` (perhaps wrapped for parallel training) on ``inputs``, in float32 or better; as :func:`returned`."""
    logits = logits_of(returned(model, inputs, by_position=by_position))
    return logits if logits.dtype == torch.float64 else logits.float()


def returned(model: nn.Module, inputs: Mapping[str, Any], *, by_position: bool) -> Any:
    """What ``model`` (perhaps wrapped for parallel training) returns on ``inputs``.

    A model that refuses the inputs raises DataError with its first line of reason; no memory raises DeviceError.
    """
    try:
        return model(*inputs.values()) if by_position else model(**inputs)
    except torch.OutOfMemoryError:
        raise DeviceError(
            f"device {next(iter(inputs.values())).device} ran out of memory; use a smaller batch size"
        ) from None
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        shapes = ", ".join(f"{k}{list(v.shape)}" for k, v in inputs.items() if isinstance(v, Tensor))
        raise DataError(
            f"the model refuses the data ({shapes}): {reason}; check names, shapes and values of the arrays"
        ) from error


def logits_of(output: Any) -> Tensor:
    """``output.logits`` if there is such a thing, else the first floating tensor that is no scalar."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    values = output.values() if isinstance(output, Mapping) else output
    for value in (values,) if isinstance(values, Tensor) else values:
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1:
            return value
    raise DataError(
        f"the model returns {type(output).__name__} without logits; its output should be or hold a tensor of them"
    )
