"""The settings of the tables: for every seed, parents that are trained once and kept in build/parents, inputs, test data.

Digits are scikit-learn's 1,797 images of 8 x 8, split anew by every seed into 1,297 to train on (without labels: the inputs) and 500
held out. Texts are Python's own: the topics of its documentation, and the source of its library.
"""

from __future__ import annotations

import pydoc_data.topics
import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import parents as known
import torch
from rows import Setting
from safetensors.torch import load_file, save_file
from torch import nn

from otfuse.core.dataset import Dataset

WELL = known.TRAIN  # 400 steps
WEAK = known.TRAIN.model_copy(update={"steps": 90})
FEW = 100  # labels to finetune with
WINDOW, TOKENS, VOCABULARY = 64, 1536, 512


def _few(data: Dataset, seed: int) -> Dataset:
    return data.take(np.random.default_rng(1000 + seed).permutation(data.size)[:FEW])


def _digits(models: list[nn.Module], seed: int, inputs: int | None = None) -> Setting:
    data = known.digits(seed)
    order = np.random.default_rng(2000 + seed).permutation(data.train.size)[:inputs]
    few = _few(data.train, seed) if inputs is None else None
    return Setting(models, dict(data.inputs.take(order).inputs), data.held_out, few)


def know_2(seed: int) -> Setting:
    """Two parents that know different things: each saw five classes, and one image in twenty of the others."""
    return _digits(known.parents(2, seed), seed)


def know_3(seed: int) -> Setting:
    """Three parents that know different things."""
    return _digits(known.parents(3, seed), seed)


def know_5(seed: int) -> Setting:
    """Five parents that know different things: two classes each."""
    return _digits(known.parents(5, seed), seed)


def know_2_inputs_16(seed: int) -> Setting:
    """Two parents that know different things, 16 unlabelled inputs."""
    return _digits(known.parents(2, seed), seed, 16)


def know_2_inputs_32(seed: int) -> Setting:
    """Two parents that know different things, 32 unlabelled inputs."""
    return _digits(known.parents(2, seed), seed, 32)


def know_2_inputs_128(seed: int) -> Setting:
    """Two parents that know different things, 128 unlabelled inputs."""
    return _digits(known.parents(2, seed), seed, 128)


def same_2_weak(seed: int) -> Setting:
    """Two parents of one task, other seeds, trained for 90 steps; inputs are what they were trained on."""
    return _digits(known.parents(2, seed, same_task=True, options=WEAK), seed)


def same_5_weak(seed: int) -> Setting:
    """Five parents of one task, other seeds, trained for 90 steps."""
    return _digits(known.parents(5, seed, same_task=True, options=WEAK), seed)


def same_2_well(seed: int) -> Setting:
    """Two parents of one task, other seeds, trained for 400 steps."""
    return _digits(known.parents(2, seed, same_task=True), seed)


def same_5_well(seed: int) -> Setting:
    """Five parents of one task, other seeds, trained for 400 steps."""
    return _digits(known.parents(5, seed, same_task=True), seed)


def same_2_unseen(seed: int) -> Setting:
    """Two parents of one task, trained for 90 steps on one half of the images; inputs are the other half, which no parent saw."""
    data = known.digits(seed)
    half, other = data.train.take(slice(0, 647)), data.train.take(slice(647, None))
    path = known.KEPT / f"half-{seed}"
    models = [
        known.trained(path.with_name(f"{path.name}-{i}.safetensors"), 100 * seed + i, half, WEAK) for i in range(2)
    ]
    return Setting(models, dict(other.inputs), data.held_out)


# -- text ----------------------------------------------------------------------------------------------------------------
def _documentation() -> str:
    return "\n".join(pydoc_data.topics.topics.values())


def _source() -> str:
    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(library.glob("[a-t]*.py"))[:40]
    return "\n".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)[:460_000]


@lru_cache(maxsize=1)
def _texts() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Tokens of both texts by one tokenizer: nine tenths to train on, one held out."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    texts = {"documentation": _documentation(), "source": _source()}
    made.train_from_iterator(texts.values(), trainer)
    ids = {name: torch.tensor(made.encode(text).ids) for name, text in texts.items()}
    return {name: (t[: len(t) * 9 // 10], t[len(t) * 9 // 10 :]) for name, t in ids.items()}


def _model(kind: str, seed: int) -> nn.Module:
    import transformers

    size: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    if kind.startswith("gpt"):
        still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        tied = {"tie_word_embeddings": kind == "gpt-tied"}
        cls: Any = transformers.GPT2LMHeadModel
        config = cls.config_class(n_embd=64, n_layer=3, n_head=4, n_positions=WINDOW, **still, **tied, **size)
    else:
        heads = {"num_attention_heads": 8, "num_key_value_heads": 2}
        cls = transformers.LlamaForCausalLM
        config = cls.config_class(
            hidden_size=64, num_hidden_layers=3, intermediate_size=176, max_position_embeddings=WINDOW, **heads, **size
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(config).eval()  # type: ignore[no-any-return]


def _language(kind: str, text: str, seed: int, steps: int = 700) -> nn.Module:
    """A causal model trained on one text; kept."""
    made, path = _model(kind, 500 + seed), known.KEPT / f"{kind}-{text}-{seed}-{steps}.safetensors"
    if path.exists():
        made.load_state_dict(load_file(path), strict=False)
        made.tie_weights()  # type: ignore[operator]
        return made
    tokens, chance = _texts()[text][0], torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(made.parameters(), lr=3e-3, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        starts = torch.randint(0, len(tokens) - WINDOW, (TOKENS // WINDOW, 1), generator=chance)
        ids = tokens[starts + torch.arange(WINDOW)]
        loss = made(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({n: t.detach().clone() for n, t in made.state_dict().items()}, path)
    return made


def _windows(tokens: torch.Tensor, count: int) -> np.ndarray:
    starts = np.linspace(0, len(tokens) - WINDOW, count).astype(np.int64)[:, None]
    found: np.ndarray = tokens.numpy()[starts + np.arange(WINDOW)]
    return found


def _text(kind: str, seed: int, texts: tuple[str, str], windows: int = 256) -> Setting:
    """``texts`` are what each parent learned; unlabelled windows and test windows come from both alike."""
    models = [_language(kind, text, 10 * seed + i) for i, text in enumerate(texts)]
    names = list(dict.fromkeys(texts))
    inputs = np.concatenate([_windows(_texts()[n][0], windows) for n in names])
    test = np.concatenate([_windows(_texts()[n][1], 300 // len(names)) for n in names])
    inputs = inputs[np.random.default_rng(seed).permutation(len(inputs))]
    return Setting(models, {"input_ids": inputs}, Dataset({"input_ids": test}), batch=16)


def text_gpt(seed: int) -> Setting:
    """Two GPT-2s, untied, of width 64 with 3 layers, on one text (256 windows of 64 tokens)."""
    return _text("gpt", seed, ("documentation", "documentation"))


def text_gpt_tied(seed: int) -> Setting:
    """The same, tied."""
    return _text("gpt-tied", seed, ("documentation", "documentation"))


def text_llama(seed: int) -> Setting:
    """Two Llamas of width 64 with 3 layers, 8 heads and 2 key/value groups, on one text (256 windows)."""
    return _text("llama", seed, ("documentation", "documentation"))


def two_texts_gpt(seed: int) -> Setting:
    """Two GPT-2s, untied, on two texts; 512 windows of each unlabelled, loss on both."""
    return _text("gpt", seed, ("documentation", "source"), 512)


def two_texts_llama(seed: int) -> Setting:
    """Two Llamas on two texts; 512 windows of each unlabelled, loss on both."""
    return _text("llama", seed, ("documentation", "source"), 512)


SETTINGS = {
    f.__name__.replace("_", "-"): f
    for f in (
        know_2, know_3, know_5, know_2_inputs_16, know_2_inputs_32, know_2_inputs_128, same_2_weak, same_5_weak, same_2_well,
        same_5_well, same_2_unseen, text_gpt, text_gpt_tied, text_llama, two_texts_gpt, two_texts_llama,
    )
}  # fmt: skip
