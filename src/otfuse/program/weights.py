"""Stored tensors of one model by name, wherever they lie: in a module, or in files from which they are read when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 1 << 20  # values worked on at a time


class Weights(Mapping[str, torch.Tensor]):
    """``weights[name]`` is a tensor in the type that is computed in; from files it is read anew each time, and not kept.

    This class holds them in memory; ``io`` has one that reads.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        self.alike: dict[str, list[str]] = {}  # first name -> every name of the same tensor
        first: dict[int, str] = {}
        for name, tensor in tensors.items():
            self.alike.setdefault(first.setdefault(id(tensor), name), []).append(name)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:  # Mapping's own reads the tensor to find out
        return name in self._tensors

    def shape(self, name: str) -> torch.Size:
        """Its shape, without reading it."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """The type in which it is given and computed with, without reading it."""
        return self._tensors[name].dtype

    def stored(self, name: str) -> torch.dtype:
        """The type in which it is stored, without reading it."""
        return self._tensors[name].dtype

    def blocks(self, name: str, size: int) -> Iterator[torch.Tensor]:
        """Its values in order, flat, ``size`` at a time, in the type in which they are stored."""
        yield from self[name].reshape(-1).split(size) if self[name].numel() else ()
