"""Trains small language models from scratch on a text file, two seeds each, as checkpoints for `run.py`.

    python experiments/text/train.py TEXT OUT [--only bert-a gpt-b ...] [--scale 1.0]

Tokenizers (byte pairs, for the masked model characters) are made from the first nine tenths of the text; the rest is held
out and saved in windows as `OUT/valid-NAME.npz` (for the encoder-decoder: a window and what follows), training windows as
`OUT/probe-NAME.npz`. A model that is there already is kept.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

WINDOW = 96  # tokens per example
SHORT = 64
VOCABULARY = 512
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, MASK = 0, 4
TOKENS = 3072  # per update
IGNORE = -100


@dataclass(frozen=True)
class Family:
    """How one kind of model is built and trained."""

    model: str
    config: dict[str, Any]
    objective: str  # masked | causal | pairs
    steps: int
    learning_rate: float
    window: int = WINDOW
    characters: bool = False


_BERT = {
    "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512,
    "max_position_embeddings": SHORT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
_GPT = {
    "n_embd": 128,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": WINDOW,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
_LLAMA = {
    "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2,
    "intermediate_size": 256, "max_position_embeddings": WINDOW,
}  # fmt: skip
_T5 = {
    "d_model": 96,
    "d_kv": 24,
    "d_ff": 256,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "decoder_start_token_id": PAD,
}

FAMILIES = {
    "gpt": Family("GPT2LMHeadModel", _GPT, "causal", 500, 2e-3),
    "bert": Family("BertForMaskedLM", _BERT, "masked", 700, 1e-3, SHORT, characters=True),
    "llama": Family("LlamaForCausalLM", _LLAMA, "causal", 400, 2e-3),
    "t5": Family("T5ForConditionalGeneration", _T5, "pairs", 400, 3e-3),
}


def tokenizer_for(text: str, family: Family) -> transformers.PreTrainedTokenizerFast:
    """Byte pairs trained on ``text``, or its characters."""
    if family.characters:
        known = {token: number for number, token in enumerate((*SPECIAL, *sorted(set(text))))}
        inner = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        inner.decoder = decoders.Fuse()
    else:
        inner = Tokenizer(models.BPE(unk_token="[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator([text], trainer)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=family.window, **names)


def build(family: Family, seed: int, vocabulary: int) -> nn.Module:
    """The model with weights from ``seed``; a local fork keeps the global generator as it was.

    A masked model's position table starts as sinusoids: from a random one it takes thousands of updates until it finds
    out that neighbours matter.
    """
    cls = getattr(transformers, family.model)
    ids = {"pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 3, "vocab_size": vocabulary}
    config = cls.config_class(**(family.config | ids))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config)
    if family.objective == "masked":
        table = model.get_parameter("bert.embeddings.position_embeddings.weight")
        rates = 100.0 ** -torch.linspace(0, 1, table.shape[1] // 2)
        angles = torch.arange(len(table))[:, None] * rates
        table.data = 0.05 * torch.cat([angles.sin(), angles.cos()], 1)
    return model  # type: ignore[no-any-return]


def loss_of(model: nn.Module, family: Family, windows: Tensor, chance: torch.Generator) -> Tensor:
    """The training loss on ``windows[example, token]`` for what the family is for."""
    if family.objective == "causal":
        return model(input_ids=windows, labels=windows).loss  # type: ignore[no-any-return]
    if family.objective == "pairs":
        half = windows.shape[1] // 2
        return model(input_ids=windows[:, :half], labels=windows[:, half:].contiguous()).loss  # type: ignore[no-any-return]
    hidden = torch.rand(windows.shape, generator=chance) < 0.2
    labels = windows.masked_fill(~hidden, IGNORE)
    return model(input_ids=windows.masked_fill(hidden, MASK), labels=labels).loss  # type: ignore[no-any-return]


def train(model: nn.Module, family: Family, tokens: Tensor, seed: int, steps: int) -> float:
    """AdamW with a one-cycle rate on random windows of ``tokens``; returns the last hundred steps' mean loss."""
    chance = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=family.learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, family.learning_rate, total_steps=steps, pct_start=0.1)
    losses, began = [], time.perf_counter()
    model.train()
    for step in range(steps):
        starts = torch.randint(0, len(tokens) - family.window, (TOKENS // family.window, 1), generator=chance)
        loss = loss_of(model, family, tokens[starts + torch.arange(family.window)], chance)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if step % 100 == 99:
            print(
                f"  step {step + 1}/{steps} loss {np.mean(losses[-100:]):.3f} {time.perf_counter() - began:.0f} s",
                flush=True,
            )
    return float(np.mean(losses[-100:]))


def windows_of(tokens: Tensor, count: int, width: int) -> np.ndarray:
    """``count`` windows, evenly spread: ``[count, width]``."""
    starts = np.linspace(0, len(tokens) - width, count).astype(np.int64)[:, None]
    windows: np.ndarray = tokens.numpy()[starts + np.arange(width)]
    return windows


def save_data(out: Path, name: str, family: Family, training: Tensor, held_out: Tensor) -> None:
    """Held-out windows for evaluation, training windows as probe."""
    for part, tokens, count in (("valid", held_out, 28800), ("probe", training, 19200)):
        ids = windows_of(tokens, count // family.window, family.window)
        half = family.window // 2
        arrays = (
            {"input_ids": ids[:, :half], "labels": ids[:, half:]} if family.objective == "pairs" else {"input_ids": ids}
        )
        np.savez(out / f"{part}-{name}.npz", **arrays)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", help="names such as bert-a; default all")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of steps")
    given = parser.parse_args()
    torch.set_num_threads(1)
    text = given.text.read_text(encoding="utf-8")
    cut = len(text) * 9 // 10
    given.out.mkdir(parents=True, exist_ok=True)
    kit = {}
    for name, family in FAMILIES.items():
        tokenizer = tokenizer_for(text[:cut], family)
        parts = [torch.tensor(tokenizer(part, verbose=False)["input_ids"]) for part in (text[:cut], text[cut:])]
        save_data(given.out, name, family, *parts)
        kit[name] = tokenizer, parts[0]
    for number, letter in enumerate("ab"):
        for name, family in FAMILIES.items():
            folder = given.out / f"{name}-{letter}"
            if (given.only and folder.name not in given.only) or (folder / "training.json").exists():
                continue
            print(folder.name, flush=True)
            began = time.perf_counter()
            tokenizer, training = kit[name]
            model = build(family, 100 + number, len(tokenizer))
            steps = max(2, int(family.steps * given.scale))
            loss = train(model, family, training, seed=200 + number, steps=steps)
            model.save_pretrained(folder)  # type: ignore[operator]
            tokenizer.save_pretrained(folder)
            facts = {"seed": number, "steps": steps, "loss": loss, "seconds": time.perf_counter() - began}
            (folder / "training.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
