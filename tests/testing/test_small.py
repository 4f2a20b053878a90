"""Small models and tokenizers: the same seed or text gives the same thing, and nothing global is touched."""

from __future__ import annotations

import pytest
import torch

from otfuse.errors import DataError
from otfuse.testing import small
from otfuse.testing.examples import EXAMPLES
from otfuse.testing.record import multiset, stored
from otfuse.testing.text import SPECIAL, tokenizer

TEXT = "The quick brown fox\njumps over the lazy dog, and the dog — naïve — sleeps.\n" * 5
MAKERS = {
    "image_classifier": {},
    "masked_lm": {"vocabulary": 50},
    "causal_lm": {"vocabulary": 50},
    "grouped_lm": {"vocabulary": 50},
    "text_to_text": {"vocabulary": 50},
}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("name", MAKERS)
def test_seed_alone_decides_the_weights(name):
    make, options = getattr(small, name), MAKERS[name]
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    first = make(**options, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(8)
    assert same(first, make(**options, seed=1))
    assert not same(first, make(**options, seed=2))
    assert not first.training


@pytest.mark.parametrize("kind", ["character", "word", "bpe"])
def test_tokenizer_is_the_same_when_built_again_and_when_loaded(kind, tmp_path):
    from transformers import AutoTokenizer

    built = tokenizer(TEXT, kind=kind, size=300, folder=tmp_path)
    ids = built("the lazy dog — jumps\nover")["input_ids"]
    assert tokenizer(TEXT, kind=kind, size=300)("the lazy dog — jumps\nover")["input_ids"] == ids
    assert AutoTokenizer.from_pretrained(tmp_path)("the lazy dog — jumps\nover")["input_ids"] == ids
    assert built.convert_ids_to_tokens(range(5)) == SPECIAL
    assert built.unk_token_id not in ids


@pytest.mark.parametrize("kind", ["character", "bpe"])
def test_text_comes_back_as_it_went_in(kind):
    built = tokenizer(TEXT, kind=kind, size=300)
    assert built.decode(built(TEXT)["input_ids"]) == TEXT


def test_an_unknown_character_is_the_unknown_token():
    built = tokenizer(TEXT)
    assert built("Ω")["input_ids"] == [built.unk_token_id]


def test_empty_text_is_refused():
    with pytest.raises(DataError, match="text to build a tokenizer from is empty"):
        tokenizer(" \n")


def test_multiset_reads_its_notation_and_refuses_another():
    assert multiset("2x4 4x6/4") == {(4, 1): 2, (6, 4): 4}
    with pytest.raises(ValueError, match="not written as count x size"):
        multiset("2*4")


@pytest.mark.parametrize("name", ["plain_vit", "bert", "resnet"])
def test_examples_hold_no_default_values(name):
    module, _ = EXAMPLES[name].build(0)
    again, other = EXAMPLES[name].build(0)[0], EXAMPLES[name].build(1)[0]
    for key, tensor in stored(module).items():
        if tensor.numel() > 1:
            assert tensor.unique().numel() > tensor.numel() / 2, key
        assert torch.equal(tensor, stored(again)[key])
        assert not torch.equal(tensor, stored(other)[key])
