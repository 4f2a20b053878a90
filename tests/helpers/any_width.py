"""A small encoder in which every width is free, narrow and wider."""

from __future__ import annotations

import torch
from torch import nn


class Small(nn.Module):
    """A pre-norm encoder of one block in which every width is free: stream, heads, value units, MLP."""

    def __init__(self, width, heads, value, mlp, score=4):
        super().__init__()
        self.heads = heads
        self.embed, self.first, self.second = nn.Linear(5, width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, heads * score), nn.Linear(width, heads * score)
        self.value, self.out = nn.Linear(width, heads * value), nn.Linear(heads * value, width)
        self.up, self.down, self.head = nn.Linear(width, mlp), nn.Linear(mlp, width), nn.Linear(width, 3)

    def forward(self, x):
        x = self.embed(x)
        y = self.first(x)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return self.head(x + self.down(nn.functional.gelu(self.up(self.second(x)))))


NARROW = {"width": 8, "heads": 2, "value": 3, "mlp": 10}
WIDER = {
    "stream": {"width": 16},
    "three times": {"width": 24, "mlp": 30},
    "MLP": {"mlp": 20},
    "value units": {"value": 6},
    "heads": {"heads": 4},
    "all but heads": {"width": 16, "value": 6, "mlp": 20},
    "heads and stream": {"heads": 4, "width": 16},
}


def drawn(module, seed=0, spread=0.3):
    """The module with every parameter mattering: matrices keep the scale of what they read, gains lie around one."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=chance)
            gain = p.ndim == 1 and name.endswith("weight")
            p.copy_(1 + spread * noise if gain else noise * (spread if p.ndim == 1 else p.shape[-1] ** -0.5))
    return module.eval()
