"""A module made of layers by name and a function of them."""

from __future__ import annotations

from torch import nn


class Named(nn.Module):
    """Layers by name, and a function of them and the input."""

    def __init__(self, forward, layers):
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x, *more):
        return self.function(self, x, *more)
