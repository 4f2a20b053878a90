"""Settings of text, Python's own: the topics of its documentation, and the source of its library; one tokenizer for both.

Every model has width 64 and 3 layers and reads windows of 64 tokens; nine tenths of a text are trained on, one is held out.
A BERT has to find its neighbours by position before it learns anything else: it reads 16 characters at a time, and longer.
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
import transformers
from rows import Setting
from safetensors.torch import load_file, save_file
from torch import nn

from otfuse.core.dataset import Dataset

WINDOW, TOKENS, VOCABULARY = 64, 1536, 512  # tokens of a window and of a training step
SHORT = {"bert": 16}  # windows of other lengths
STEPS, RATE = {"bert": 2000}, {"bert": 1e-3}  # else 700 and 3e-3
PAD = VOCABULARY  # the first of two tokens that no text has (of a BERT it is the mask); the other ends
HIDDEN = 0.15  # share of tokens that a masked model has to guess
ONE, TWO = ("documentation", "documentation"), ("documentation", "source")


def _documentation() -> str:
    return "\n".join(pydoc_data.topics.topics.values())


def _source() -> str:
    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(library.glob("[a-t]*.py"))[:40]
    return "\n".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)[:460_000]


def _both() -> dict[str, str]:
    return {"documentation": _documentation(), "source": _source()}


@lru_cache(maxsize=1)
def _alphabet() -> dict[str, int]:
    return {letter: i for i, letter in enumerate(sorted(set("".join(_both().values()))))}


def _texts(kind: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Tokens of both texts: nine tenths to train on, one held out."""
    ids = _characters() if kind == "bert" else _tokens()
    return {name: (t[: len(t) * 9 // 10], t[len(t) * 9 // 10 :]) for name, t in ids.items()}


@lru_cache(maxsize=1)
def _characters() -> dict[str, torch.Tensor]:
    return {name: torch.tensor([_alphabet()[letter] for letter in text]) for name, text in _both().items()}


@lru_cache(maxsize=1)
def _tokens() -> dict[str, torch.Tensor]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    texts = _both()
    made.train_from_iterator(texts.values(), trainer)
    return {name: torch.tensor(made.encode(text).ids) for name, text in texts.items()}


def _config(kind: str) -> Any:
    causal = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    more = {"vocab_size": VOCABULARY + 2, "pad_token_id": PAD, "eos_token_id": VOCABULARY + 1}
    if kind.startswith("gpt"):
        still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        tied = {"tie_word_embeddings": kind == "gpt-tied"}
        return transformers.GPT2Config(n_embd=64, n_layer=3, n_head=4, n_positions=WINDOW, **still, **tied, **causal)
    if kind == "llama":
        heads = {"num_attention_heads": 8, "num_key_value_heads": 2}
        size = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3}
        return transformers.LlamaConfig(max_position_embeddings=WINDOW, **size, **heads, **causal)
    if kind == "bert":
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        size = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
        mask = len(_alphabet())
        own = {"vocab_size": mask + 2, "mask_token_id": mask, "pad_token_id": mask, "eos_token_id": mask + 1}
        read = {"max_position_embeddings": SHORT[kind], "initializer_range": 0.05}
        return transformers.BertConfig(**size, **own, **read, **still)
    size = {"d_model": 64, "d_kv": 16, "d_ff": 256, "num_layers": 3, "num_heads": 4, "dropout_rate": 0.0}
    return transformers.T5Config(decoder_start_token_id=PAD, **size, **more)


CLASSES = {
    "gpt": transformers.GPT2LMHeadModel,
    "gpt-tied": transformers.GPT2LMHeadModel,
    "llama": transformers.LlamaForCausalLM,
    "bert": transformers.BertForMaskedLM,
    "t5": transformers.T5ForConditionalGeneration,
}


def _read(kind: str, ids: torch.Tensor, chance: torch.Generator) -> dict[str, torch.Tensor]:
    """A batch with labels: the next token, hidden tokens, or the second half of a window from the first."""
    if kind == "bert":
        hidden = torch.rand(ids.shape, generator=chance) < HIDDEN
        return {"input_ids": ids.masked_fill(hidden, len(_alphabet())), "labels": ids.masked_fill(~hidden, -100)}
    if kind == "t5":
        return {"input_ids": ids[:, : WINDOW // 2], "labels": ids[:, WINDOW // 2 :].contiguous()}
    return {"input_ids": ids, "labels": ids}


def _language(kind: str, text: str, seed: int) -> nn.Module:
    """A model trained on one text; kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(500 + seed)
        made: Any = CLASSES[kind](_config(kind)).eval()
    steps, rate, length = STEPS.get(kind, 700), RATE.get(kind, 3e-3), SHORT.get(kind, WINDOW)
    path = known.KEPT / f"{kind}-{text}-{seed}-{steps}.safetensors"
    if path.exists():
        made.load_state_dict(load_file(path), strict=False)
        made.tie_weights()
        return made  # type: ignore[no-any-return]
    tokens, chance = _texts(kind)[text][0], torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(made.parameters(), lr=rate, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        starts = torch.randint(0, len(tokens) - length, (TOKENS // length, 1), generator=chance)
        loss = made(**_read(kind, tokens[starts + torch.arange(length)], chance)).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({n: t.detach().clone() for n, t in made.state_dict().items()}, path)
    return made  # type: ignore[no-any-return]


def _windows(tokens: torch.Tensor, count: int, length: int) -> np.ndarray:
    starts = np.linspace(0, len(tokens) - length, count).astype(np.int64)[:, None]
    found: np.ndarray = tokens.numpy()[starts + np.arange(length)]
    return found


def _inputs(kind: str, windows: np.ndarray) -> dict[str, np.ndarray]:
    """Without labels; a model that reads one half and writes the other is shown both."""
    if kind != "t5":
        return {"input_ids": windows}
    first, second = np.split(windows, 2, axis=1)
    begin = np.full((len(second), 1), PAD)
    return {"input_ids": first, "decoder_input_ids": np.concatenate([begin, second[:, :-1]], axis=1)}


def _text(kind: str, seed: int, texts: tuple[str, str], windows: int = 256) -> Setting:
    """``texts`` are what each parent learned; unlabelled windows and test windows come from both alike."""
    models = [_language(kind, text, 10 * seed + i) for i, text in enumerate(texts)]
    names = list(dict.fromkeys(texts))
    tokens, length = _texts(kind), SHORT.get(kind, WINDOW)
    per = WINDOW // length  # as many tokens in shorter windows
    inputs = np.concatenate([_windows(tokens[n][0], per * windows, length) for n in names])
    test = np.concatenate([_windows(tokens[n][1], per * 300 // len(names), length) for n in names])
    inputs = inputs[np.random.default_rng(seed).permutation(len(inputs))]
    asked = _inputs(kind, test)
    labels = np.split(test, 2, axis=1)[1] if kind == "t5" else None
    held_out = Dataset({"input_ids": asked["input_ids"]}, labels)
    return Setting(models, _inputs(kind, inputs), held_out, batch=16 * per)


def text_gpt(seed: int) -> Setting:
    """Two GPT-2s, untied, on one text (256 windows)."""
    return _text("gpt", seed, ONE)


def text_gpt_tied(seed: int) -> Setting:
    """Two GPT-2s, tied, on one text."""
    return _text("gpt-tied", seed, ONE)


def text_llama(seed: int) -> Setting:
    """Two Llamas with 8 heads and 2 key/value groups on one text."""
    return _text("llama", seed, ONE)


def text_bert(seed: int) -> Setting:
    """Two BERTs, post-norm and tied, on one text in windows of 16 characters; the loss is of 15 % that are hidden."""
    return _text("bert", seed, ONE)


def text_t5(seed: int) -> Setting:
    """Two T5s on one text: the second half of a window from the first."""
    return _text("t5", seed, ONE)


def two_texts_gpt(seed: int) -> Setting:
    """Two GPT-2s, untied, on two texts; 512 windows of each unlabelled, loss on both."""
    return _text("gpt", seed, TWO, 512)


def two_texts_gpt_tied(seed: int) -> Setting:
    """Two GPT-2s, tied, on two texts."""
    return _text("gpt-tied", seed, TWO, 512)


def two_texts_llama(seed: int) -> Setting:
    """Two Llamas on two texts."""
    return _text("llama", seed, TWO, 512)


def two_texts_bert(seed: int) -> Setting:
    """Two BERTs on two texts."""
    return _text("bert", seed, TWO, 512)


def two_texts_t5(seed: int) -> Setting:
    """Two T5s on two texts."""
    return _text("t5", seed, TWO, 512)
