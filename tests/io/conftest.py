"""Small random models of five classes."""

import contextlib
import os
import tempfile
from pathlib import Path

import pytest
import torch
import transformers

BUILDERS = {
    "bert": lambda: transformers.BertForMaskedLM(
        transformers.BertConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=40,
            max_position_embeddings=20,
        )
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=20, vocab_size=40)
    ),
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4,
            num_channels=1, num_labels=3,
        )
    ),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=40, decoder_start_token_id=0, tie_word_embeddings=True
        )
    ),
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24, vocab_size=40,
            max_position_embeddings=20,
        )
    ),
}  # fmt: skip


def _build(kind, dtype=torch.float32, seed=0):
    """A model with every parameter drawn from a generator of its own."""
    model = BUILDERS[kind]().to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.fixture
def build():
    return _build


@pytest.fixture
def bert_folder(tmp_path, build):
    folder = tmp_path / "anchor"
    build("bert").save_pretrained(folder)
    return folder


@pytest.fixture
def barred():
    """``with barred(path)``: a place that may not be read, also where tests run as root, who may read anything."""

    @contextlib.contextmanager
    def bar(path):
        mode, user = path.stat().st_mode, os.geteuid()
        path.chmod(0)
        try:
            if user == 0:
                os.seteuid(65534)
            yield
        finally:
            os.seteuid(user)
            path.chmod(mode)

    return bar


@pytest.fixture
def open_place():
    """A temporary folder that other users may enter, which ``tmp_path`` is not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
