"""One run of the published code as a process of its own (see run.py): CHECKOUT FOLDER MODE STAGE.

MODE is activations or weights, STAGE is `load` (import and load both models, nothing else) or `fuse`. Nothing of the published code is
changed or copied. It was written for transformers 4.27, so its module names are given to it by the small model below,
and it asks a terminal for its width, so there is one.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

NEW_TO_OLD = {  # today's names of the checkpoint -> those of transformers 4.27
    "vit.layers.": "vit.encoder.layer.", "attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
}  # fmt: skip


class Namespace(nn.Module):
    """Modules under given names, called in turn."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        """One after another."""
        for module in self.children():
            x = module(x)
        return x


class SelfAttention(nn.Module):
    """Scaled dot-product attention, written out as in 2023."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, token, unit]``."""
        q, k, v = (m(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for m in (self.query, self.key, self.value))
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)


class Block(nn.Module):
    """A pre-norm block."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = Namespace(
            attention=SelfAttention(width, heads), output=Namespace(dense=nn.Linear(width, width))
        )
        self.intermediate = Namespace(dense=nn.Linear(width, inner), intermediate_act_fn=nn.GELU())
        self.output = Namespace(dense=nn.Linear(inner, width))
        self.layernorm_before, self.layernorm_after = nn.LayerNorm(width, 1e-12), nn.LayerNorm(width, 1e-12)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, token, unit]``."""
        x = x + self.attention(self.layernorm_before(x))
        return x + self.output(self.intermediate(self.layernorm_after(x)))


class PatchEmbeddings(nn.Module):
    """Pixels to patches."""

    def __init__(self, width: int, patch: int, channels: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, width, patch, patch)

    def forward(self, pixels: Tensor) -> Tensor:
        """``[batch, patch, unit]``."""
        return self.projection(pixels).flatten(2).transpose(1, 2)


class Embeddings(nn.Module):
    """Patches, class token, positions."""

    def __init__(self, width: int, patch: int, tokens: int, channels: int) -> None:
        super().__init__()
        self.cls_token, self.position_embeddings = (
            nn.Parameter(torch.zeros(1, 1, width)),
            nn.Parameter(torch.zeros(1, tokens, width)),
        )
        self.patch_embeddings = PatchEmbeddings(width, patch, channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """``[batch, token, unit]``."""
        patches = self.patch_embeddings(pixels)
        return torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1) + self.position_embeddings


class Encoder(nn.Module):
    """The blocks under the name ``layer``."""

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """``x[batch, token, unit]``."""
        for block in self.layer:
            x = block(x)
        return x


class OldVit(nn.Module):
    """The checkpoint's model under the names that the published code expects."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.config = c = transformers.AutoConfig.from_pretrained(folder)
        tokens = (c.image_size // c.patch_size) ** 2 + 1
        blocks = [Block(c.hidden_size, c.num_attention_heads, c.intermediate_size) for _ in range(c.num_hidden_layers)]
        embeddings = Embeddings(c.hidden_size, c.patch_size, tokens, c.num_channels)
        self.vit = Namespace(
            embeddings=embeddings, encoder=Encoder(blocks), layernorm=nn.LayerNorm(c.hidden_size, 1e-12)
        )
        self.classifier = nn.Linear(c.hidden_size, 10)
        self.load_state_dict({_old(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()})

    def forward(self, pixels: Tensor) -> Tensor:
        """``[batch, class]``."""
        return self.classifier(self.vit(pixels)[:, 0])


def _old(name: str) -> str:
    for new, old in NEW_TO_OLD.items():
        name = name.replace(new, old)
    return name


def arguments(mode: str) -> dict[str, Any]:
    """The configuration shipped with the published code, at its best softness for each mode."""
    import yaml

    args: dict[str, Any] = yaml.safe_load((Path(sys.argv[1]) / "experiments/fuse_hf_vit_cifar10.yaml").read_text())
    args["fusion"] |= {"type": {"activations": "acts", "weights": "wts"}[mode], "heterogeneous": False}
    args["fusion"]["sinkhorn_reg"] = {"activations": 0.08, "weights": 0.06}[mode]
    return args


def fuse(models: list[OldVit], folder: Path, mode: str) -> dict[str, Any]:
    """Activations and fusion in the order of the published main program."""
    from hf_vit_fusion import hf_vit_fusion
    from utils import get_activations, model_to_dict

    args, device = arguments(mode), torch.device("cpu")
    images = torch.from_numpy(np.load(folder / "images-200.npz")["pixel_values"])
    loader = [{"pixel_values": image[None], "labels": torch.zeros(1, dtype=torch.int64)} for image in images]
    weights = {f"model_{i}": model_to_dict(model) for i, model in enumerate(models)}
    acts = get_activations(args=args, models=models, dataloader=loader, LOGGING_LEVEL=logging.WARNING, device=device)
    fused: dict[str, Any] = hf_vit_fusion(
        args=args, weights=weights, acts=acts, alpha=0.5, device=device, LOGGING_LEVEL=logging.WARNING
    )
    return fused


def main() -> None:
    """See the module's docstring."""
    checkout, folder, mode, stage = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    sys.path.insert(0, str(checkout / "otfusion"))
    os.get_terminal_size = lambda *_: os.terminal_size((80, 24))
    import hf_vit_fusion  # noqa: F401  what it imports counts as importing

    models = [OldVit(folder / name).eval() for name in ("source", "anchor")]
    if stage == "fuse":
        fused = fuse(models, folder, mode)
        print(float(fused["classifier"]["weight"].double().norm()))


if __name__ == "__main__":
    main()
