"""Tokenizers for small language models, built from the text they are to read; nothing is downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from otfuse.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

PAD, UNKNOWN, BEGIN, END, MASK = "[PAD]", "[UNK]", "[BOS]", "[EOS]", "[MASK]"
SPECIAL = [PAD, UNKNOWN, BEGIN, END, MASK]  # ids 0 to 4, in this order

Kind = Literal["character", "word", "bpe"]


def tokenizer(text: str, *, kind: Kind = "character", size: int = 1000, folder: Path | str | None = None) -> Any:
    """A ``PreTrainedTokenizerFast`` that knows ``text``, saved to ``folder`` if one is given.

    ``character``: one token per character of ``text`` (``size`` is not used); ``word``: its ``size`` commonest words and
    signs; ``bpe``: ``size`` byte pairs. All hold the five special tokens first and give the same ids for the same
    text. Raises :class:`DataError` if ``text`` is empty.
    """
    from transformers import PreTrainedTokenizerFast

    if not text.strip():
        raise DataError("the text to build a tokenizer from is empty; give a text with words in it")
    inner = {"character": _characters, "word": _words, "bpe": _pairs}[kind](text, size)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        mask_token=MASK,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    if folder is not None:
        fast.save_pretrained(str(folder))
    return fast


def _characters(text: str, _: int) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    known = {token: i for i, token in enumerate(SPECIAL + sorted(set(text)))}
    inner = Tokenizer(models.WordLevel(known, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return inner


def _words(text: str, size: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    inner = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False)
    inner.train_from_iterator(text.splitlines(), trainer)
    return inner


def _pairs(text: str, size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE(unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(text.splitlines(keepends=True), trainer)
    return inner
