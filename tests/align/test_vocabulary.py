"""A large vocabulary costs what its tables hold: nothing grows with its square, nor with that of any axis that stays in place."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import otfuse

TOKENS, WIDTH, PLACES = 30_000, 16, 4_000
LIMIT = (
    2 * 8
)  # bytes for every value of the largest table: in float64, and logits of two examples of 8 tokens as many again


class Largest(TorchDispatchMode):
    """Remembers how many bytes the largest tensor had that any operator made."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [t.untyped_storage().nbytes() for t in tree_leaves(made) if isinstance(t, torch.Tensor)]
        self.found = max([self.found, *sizes])
        return made


@pytest.fixture(scope="module")
def pair():
    common = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    llama = transformers.LlamaConfig(vocab_size=TOKENS, num_key_value_heads=1, **common)
    gpt2 = transformers.GPT2Config(vocab_size=TOKENS, n_positions=PLACES, n_embd=WIDTH, n_layer=1, n_head=2)
    made = {}
    for name, kind, config in (
        ("llama", transformers.LlamaForCausalLM, llama),
        ("gpt2", transformers.GPT2LMHeadModel, gpt2),
    ):
        made[name] = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            made[name].append(kind(config).eval())
    return made


@pytest.mark.parametrize("recipe", ["otfusion-wts", "otfusion-emd", "vanilla"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_no_tensor_is_much_larger_than_the_largest_stored_one(pair, name, recipe):
    models = pair[name]
    table = max(p.numel() for p in models[0].parameters())
    data = {"input_ids": np.random.default_rng(0).integers(3, TOKENS, (2, 6))}
    tracemalloc.start()
    try:
        with Largest() as largest:
            otfuse.fuse(models, recipe, data=data)
        peak = tracemalloc.get_traced_memory()[1]  # what NumPy and SciPy held, PyTorch's tensors apart
    finally:
        tracemalloc.stop()
    assert 0 < largest.found <= LIMIT * table
    assert peak < 40 * 8 * table < 8 * TOKENS**2 / 2
