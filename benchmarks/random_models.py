"""Random bfloat16 Llamas in shards, as large as you like: never more than one shard is in memory.

    python benchmarks/random_models.py FOLDER SIZE SEED [SEED...]     # writes FOLDER/SIZE-SEED; sizes: see SIZES

Every tensor has a generator of its own, seeded by the model's seed and its name. No tokenizer is written.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size", "tie_word_embeddings")  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    name: dict(zip(_KEYS, values, strict=True))
    for name, values in {
        "tiny": (64, 2, 4, 2, 128, 500, False),  # to see what a command imports
        "10M": (256, 8, 8, 2, 704, 8_000, False),
        "30M": (320, 8, 10, 2, 896, 32_000, False),
        "100M": (640, 14, 10, 2, 1_728, 32_000, False),
        "250M": (1_024, 16, 16, 4, 2_816, 32_000, False),
        "1.2B": (2_048, 16, 32, 8, 8_192, 128_256, True),
        "8B": (4_096, 32, 32, 8, 14_336, 128_256, False),  # traced on the meta device, never written
    }.items()
}
SHARDS = 4
_STD = 0.02  # what Llamas start from
_BLOCK = 1 << 22  # values drawn at a time


def config(size: str) -> dict[str, Any]:
    """What config.json says."""
    return SIZES[size] | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "initializer_range": _STD,
    }  # fmt: skip


def shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Every stored tensor."""
    at = SIZES[size]
    width, inner, head = at["hidden_size"], at["intermediate_size"], at["hidden_size"] // at["num_attention_heads"]
    shared = head * at["num_key_value_heads"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (at["vocab_size"], width)}
    for i in range(at["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        found |= {f"{layer}.self_attn.{x}_proj.weight": (width, width) for x in "qo"}
        found |= {f"{layer}.self_attn.{x}_proj.weight": (shared, width) for x in "kv"}
        found |= {f"{layer}.mlp.{x}_proj.weight": (inner, width) for x in ("gate", "up")}
        found[f"{layer}.mlp.down_proj.weight"] = (width, inner)
        found |= {f"{layer}.{x}_layernorm.weight": (width,) for x in ("input", "post_attention")}
    found["model.norm.weight"] = (width,)
    return found if at["tie_word_embeddings"] else found | {"lm_head.weight": (at["vocab_size"], width)}


def parameters(size: str) -> int:
    """How many numbers are stored."""
    return sum(_count(shape) for shape in shapes(size).values())


def write(folder: Path, size: str, seed: int) -> None:
    """A checkpoint; one that is there already is left."""
    if (folder / "model.safetensors.index.json").exists():
        return
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    parts = _cut(shapes(size))
    where = {}
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors"
        save_file({name: _drawn(name, shape, seed) for name, shape in part.items()}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(part, file)
    (folder / "config.json").write_text(json.dumps(config(size), indent=1) + "\n")
    index = {"metadata": {"total_size": 2 * parameters(size)}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def windows(path: Path, size: str, *, count: int, length: int, seed: int) -> None:
    """Windows of random tokens as an .npz file."""
    import numpy as np

    tokens = np.random.default_rng(seed).integers(SIZES[size]["vocab_size"], size=(count, length))
    np.savez(path, input_ids=tokens, attention_mask=np.ones_like(tokens))


def _drawn(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    import torch

    chance = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:6]))
    made = torch.empty(shape, dtype=torch.bfloat16)
    for block in made.view(-1).split(_BLOCK):
        drawn = torch.randn(len(block), generator=chance)
        block.copy_(1 + 0.1 * drawn if len(shape) == 1 else _STD * drawn)
    return made


def _cut(found: dict[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    """In order, into shards of about the same size."""
    most = sum(map(_count, found.values())) / SHARDS
    parts, held = [dict[str, tuple[int, ...]]()], 0
    for name, shape in found.items():
        if parts[-1] and held + _count(shape) > most and len(parts) < SHARDS:
            parts, held = [*parts, {}], 0
        parts[-1][name], held = shape, held + _count(shape)
    return parts


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


if __name__ == "__main__":
    for given in sys.argv[3:]:
        write(Path(sys.argv[1]) / f"{sys.argv[2]}-{given}", sys.argv[2], int(given))
