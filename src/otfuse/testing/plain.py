"""Plain torch modules of the example database: what users write themselves, without a config."""

# mypy: disable-error-code="no-any-return"
# A call of an nn.Module has no type; the forwards below are examples of user code, which does not cast.

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from otfuse.testing.record import Example, normal


class Mlp(nn.Module):
    """Residual multilayer perceptron with a norm."""

    def __init__(self, reads: int = 7, width: int = 9, inner: int = 12, labels: int = 5) -> None:
        super().__init__()
        self.enter = nn.Linear(reads, inner)
        self.middle = nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.leave = nn.Linear(width, labels)

    def forward(self, x: Tensor) -> Tensor:
        """``x[..., reads]`` to ``[..., labels]``."""
        x = self.norm(self.middle(functional.relu(self.enter(x))))
        return self.leave(x + self.down(functional.gelu(self.up(x))))


class Attention(nn.Module):
    """Self-attention with one fused weight, viewed as (3, heads, units)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, token, width]`` to the same shape."""
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class WrittenAttention(Attention):
    """The same attention with its softmax written out, and the fused weight split by ``chunk``."""

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, token, width]`` to the same shape."""
        batch, length, width = x.shape
        parts = self.qkv(x).chunk(3, dim=-1)
        query, key, value = (p.view(batch, length, self.heads, -1).transpose(1, 2) for p in parts)
        scores = (query @ key.transpose(-2, -1)) * (width // self.heads) ** -0.5
        return self.proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, inner: int, attention: type[Attention] = Attention) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = attention(width, heads)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, token, width]`` to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class PlainVit(nn.Module):
    """Vision transformer with fused query-key-value; patches are cut by reshaping, not by a convolution."""

    def __init__(
        self,
        width: int = 24,
        heads: int = 4,
        inner: int = 36,
        layers: int = 2,
        grid: int = 3,
        patch: int = 4,
        labels: int = 5,
        channels: int = 3,
        attention: type[Attention] = Attention,
    ) -> None:
        super().__init__()
        self.grid, self.patch, self.channels = grid, patch, channels
        self.embed = nn.Linear(channels * patch * patch, width)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, grid * grid + 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, inner, attention) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, labels)

    def forward(self, images: Tensor) -> Tensor:
        """``images[batch, channel, grid * patch, grid * patch]`` to ``[batch, labels]``."""
        batch, g, p = len(images), self.grid, self.patch
        patches = images.reshape(batch, self.channels, g, p, g, p).permute(0, 2, 4, 1, 3, 5)
        x = self.embed(patches.reshape(batch, g * g, self.channels * p * p))
        x = torch.cat([self.token.expand(batch, -1, -1), x], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class ConvAttention(nn.Module):
    """Convolutional patches, one attention, mean over tokens: the way an image library lays it out."""

    def __init__(self, width: int = 24, heads: int = 4, labels: int = 5) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.head = nn.Linear(width, labels)

    def forward(self, images: Tensor) -> Tensor:
        """``images[batch, 3, 12, 12]`` to ``[batch, labels]``."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        return self.head((x + self.attention(self.norm(x))).mean(1))


class Encoder(nn.Module):
    """``nn.TransformerEncoder`` between an embedding and a classifier."""

    def __init__(
        self, *, reads: int = 6, width: int = 24, inner: int = 36, labels: int = 5, first: bool = False
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(reads, width)
        self.encoder = encoder(width, 4, inner, first=first)
        self.leave = nn.Linear(width, labels)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, token, reads]`` to ``[batch, labels]``."""
        return self.leave(self.encoder(self.enter(x)).mean(1))


def encoder(width: int = 24, heads: int = 4, inner: int = 36, *, first: bool = False) -> nn.TransformerEncoder:
    """Two layers of ``nn.TransformerEncoder``, norms before the branches if ``first``."""
    layer = nn.TransformerEncoderLayer(width, heads, inner, batch_first=True, norm_first=first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch norms around a skip."""

    def __init__(self, reads: int, width: int, inner: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(reads, inner, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(width)
        self.skip = nn.Conv2d(reads, width, 1, stride=stride) if reads != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, reads, h, w]`` to ``[batch, width, h / stride, w / stride]``."""
        inner = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(inner)) + self.skip(x))


class Resnet(nn.Module):
    """Small residual network: batch norms, a group norm, pooling, and a flattened classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.stage1 = Residual(8, 8, 8)
        self.stage2 = Residual(8, 12, 12, stride=2)
        self.last = nn.Conv2d(12, 12, 3, padding=1)
        self.groups = nn.GroupNorm(4, 12)
        self.head = nn.Linear(12 * 2 * 2, 5)

    def forward(self, images: Tensor) -> Tensor:
        """``images[batch, 3, 8, 8]`` to ``[batch, 5]``."""
        x = functional.max_pool2d(functional.relu(self.norm(self.stem(images))), 2)
        x = self.groups(self.last(self.stage2(self.stage1(x))))
        return self.head(functional.adaptive_avg_pool2d(x, 2).flatten(1))


class CrossAttention(nn.Module):
    """``nn.MultiheadAttention`` with a memory of another width, and an embedding table."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(23, 20)
        self.memory = nn.Linear(7, 14)
        self.attention = nn.MultiheadAttention(20, 4, kdim=14, vdim=14, batch_first=True)
        self.norm = nn.LayerNorm(20)
        self.head = nn.Linear(20, 23, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, memory: Tensor) -> Tensor:
        """``ids[batch, token]``, ``memory[batch, item, 7]`` to ``[batch, token, 23]``."""
        x = self.embed(ids)
        y = self.memory(memory)
        return self.head(self.norm(x + self.attention(x, y, y, need_weights=False)[0]))


def _images(size: int = 12, batch: int = 2, channels: int = 3) -> tuple[Tensor, ...]:
    return (normal(batch, channels, size, size),)


VIT = "1x24 2x4 4x6/4 2x36"
RESNET = "2x8 2x12 1x4 1x3/4"

EXAMPLES = (
    Example("mlp", Mlp, lambda: (normal(3, 7),), "1x9 2x12"),
    Example("mlp_one", Mlp, lambda: (normal(1, 7),), "1x9 2x12", note="batch of one"),
    Example("mlp_equal", lambda: Mlp(6, 6, 6, 6), lambda: (normal(6, 6),), "3x6", note="batch and all widths equal"),
    Example("plain_vit", PlainVit, _images, VIT),
    Example(
        "plain_vit_written", lambda: PlainVit(attention=WrittenAttention), _images, VIT, note="softmax written out"
    ),
    Example("plain_vit_one", lambda: PlainVit(grid=1), lambda: _images(4, 1), VIT, note="batch of one, one patch"),
    Example(
        "plain_vit_equal",
        lambda: PlainVit(width=16, heads=4, inner=16, grid=4, patch=4, labels=4, channels=4),
        lambda: _images(16, 4, 4),
        "1x16 2x4 4x4/4 2x16",
        note="heads, head units, patches, batch and labels are 4; stream and inner units 16",
    ),
    Example("timm_like_vit", ConvAttention, _images, "1x4 2x6/4 1x24"),
    Example("torch_encoder", encoder, lambda: (normal(2, 7, 24),), "2x4 4x6/4 2x36", note="the stream goes in and out"),
    Example("torch_encoder_head", Encoder, lambda: (normal(2, 7, 6),), VIT),
    Example("torch_encoder_first", lambda: Encoder(first=True), lambda: (normal(2, 7, 6),), VIT),
    Example(
        "torch_cross",
        CrossAttention,
        lambda: {"ids": torch.arange(14).view(2, 7), "memory": normal(2, 3, 7)},
        "1x20 1x14 1x4 2x5/4",
    ),
    Example("resnet", Resnet, lambda: _images(8), RESNET),
)
