"""Where fused tensors go when no files are wanted: into a module of the anchor's class."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from otfuse.program.state import copied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from otfuse.fusion.sides import Parent
    from otfuse.program.state import Slot


class IntoModule:
    """Takes fused tensors into a copy of the anchor, or into the anchor itself where that was made for this fusion.

    ``caches`` tells, once the anchor was traced, what a copy must not keep of what the anchor computed.
    """

    def __init__(self, given: Any, anchor: Parent, caches: Callable[[], Sequence[Slot]]) -> None:
        self._given, self._anchor, self._caches = given, anchor, caches
        self._own: dict[str, torch.Tensor] = {}
        self._made: nn.Module | None = None
        self._making = threading.Lock()  # two threads give at once: each of two copies would lose what the other holds

    @property
    def module(self) -> nn.Module:
        """The module, made when it is first asked for."""
        with self._making:
            if self._made is None:
                theirs = isinstance(self._given, nn.Module)
                made: nn.Module = copied(self._given, self._caches()) if theirs else self._anchor.module
                tensors = (*made.named_parameters(remove_duplicate=False), *made.named_buffers(remove_duplicate=False))
                self._own, self._made = dict(tensors), made.eval()
            return self._made

    @torch.no_grad()
    def __call__(self, name: str, blocks: Iterable[torch.Tensor]) -> None:
        """All values of one tensor, flat and in order, in the module's own type."""
        _ = self.module  # made now, if this is the first tensor
        own = self._own[name]
        if not own.is_contiguous():
            own.copy_(torch.cat(list(blocks)).reshape(own.shape))
            return
        flat, done = own.view(-1), 0
        for block in blocks:
            values = block.reshape(-1)
            flat[done : done + len(values)] = values
            done += len(values)
