"""How an operator is a gain: a layer whose matrix is diagonal, so that every channel is a problem with one input.

The gain of a norm multiplies the normed value, that of a decomposed norm or of a branch whatever it is multiplied with. A
channel is a group of one input and one output (:class:`otfuse.calibrate.forms.Form`): its moments are numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx
from torch.nn import functional

from otfuse.calibrate.forms import Form
from otfuse.flow.rules.operators import argument, operator_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from otfuse.calibrate.forms import View


def gain_of(node: fx.Node, is_stored: Callable[[Any], bool]) -> Form | None:
    """How ``node`` multiplies every channel of what it reads by its entry of a stored vector; None if it does not."""
    make = _GAINS.get(operator_name(node))
    return make(node, is_stored) if make is not None else None


def _layer_norm(node: fx.Node, is_stored: Callable[[Any], bool]) -> Form | None:
    x, shape, weight, bias = node.args[0], list[int](node.args[1]), argument(node, 2), argument(node, 3, "bias")  # type: ignore[arg-type]
    eps = argument(node, 4, "eps", 1e-5)
    return _gain(x, weight, bias, lambda v: functional.layer_norm(v, shape, eps=eps), _last(len(shape)), is_stored)


def _rms_norm(node: fx.Node, is_stored: Callable[[Any], bool]) -> Form | None:
    x, shape, weight = node.args[0], list[int](node.args[1]), argument(node, 2, "weight")  # type: ignore[arg-type]
    eps = argument(node, 3, "eps")
    return _gain(x, weight, None, lambda v: functional.rms_norm(v, shape, eps=eps), _last(len(shape)), is_stored)


def _group_norm(node: fx.Node, is_stored: Callable[[Any], bool]) -> Form | None:
    x, groups, weight, bias = node.args[0], int(node.args[1]), argument(node, 2, "weight"), argument(node, 3, "bias")  # type: ignore[arg-type]
    eps = argument(node, 4, "eps", 1e-5)
    return _gain(x, weight, bias, lambda v: functional.group_norm(v, groups, eps=eps), _along(1), is_stored)


def _product(node: fx.Node, is_stored: Callable[[Any], bool]) -> Form | None:
    """A value times a stored vector along one dimension, and plus another if nothing else reads the product."""
    dim, x, gain = _along_which(node, is_stored)
    if dim is None:
        return None
    after = next(iter(node.users))
    plus = len(node.users) == 1 and operator_name(after) == "add" and argument(after, 2, "alpha", 1) == 1
    bias = None
    if plus:
        same, _, other = _along_which(after, is_stored)
        bias = other if same == dim else None
    return _gain(x, gain, bias, lambda v: v, _along(dim), is_stored, after if bias is not None else None)


_GAINS = {"layer_norm": _layer_norm, "rms_norm": _rms_norm, "group_norm": _group_norm, "mul": _product}


def _along_which(node: fx.Node, is_stored: Callable[[Any], bool]) -> tuple[int | None, Any, Any]:
    """Of a value and a stored vector: the dimension that this lies along (from the last), the value, the vector."""
    x, vector = node.args[:2] if is_stored(node.args[1]) else node.args[1::-1]
    if not isinstance(x, fx.Node) or is_stored(x) or not is_stored(vector):
        return None, None, None
    shape, sizes = node.meta["val"].shape, vector.meta["val"].shape  # type: ignore[union-attr]
    wide = [d - len(sizes) for d, size in enumerate(sizes) if size != 1]
    if x.meta["val"].shape != shape or len(wide) != 1 or wide[0] == -len(shape):  # examples are no channels
        return None, None, None
    return wide[0], x, vector


def _gain(
    x: Any,
    gain: Any,
    bias: Any,
    normed: View,
    channels: View,
    is_stored: Callable[[Any], bool],
    adds: fx.Node | None = None,
) -> Form | None:
    if not is_stored(gain):
        return None
    weight, shift = _shifted(gain)
    return Form(
        x,
        weight,
        bias,
        lambda v: channels(normed(v)),
        channels,
        lambda w: w.view(-1, 1, 1),
        lambda b: b.view(-1, 1),
        shift=shift,
        adds=adds,
    )


def _shifted(gain: fx.Node) -> tuple[fx.Node, float]:
    """``w`` and ``c`` of a gain ``w + c``."""
    if operator_name(gain) == "add" and argument(gain, 2, "alpha", 1) == 1:
        weight, shift = gain.args[:2]
        if isinstance(weight, fx.Node) and isinstance(shift, (int, float)):
            return weight, float(shift)
    return gain, 0.0


def _last(count: int) -> View:
    return lambda v: v.flatten(v.ndim - count)[..., None]


def _along(dim: int) -> View:
    return lambda v: v.movedim(dim, -1)[..., None]
