"""`otfuse eval` of several models: each reads the data in its own way, and what is wrong is told by name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from otfuse.testing import small
from tiny import SIZES, build, save


@pytest.fixture
def unmasked(models, tmp_path):
    """A causal language model whose tokenizer has no mask token."""
    folder = shutil.copytree(models / "gpt20", tmp_path / "unmasked")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["mask_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_every_models_own_tokenizer_is_asked(otfuse, models, data, unmasked):
    text = ("--data", data / "text.txt", "--json")
    alone = [json.loads(otfuse("eval", m, *text).out)["models"][0] for m in (unmasked, models / "bert0")]
    for order in ([0, 1], [1, 0]):
        named = [(unmasked, models / "bert0")[i] for i in order]
        ran = otfuse("eval", *named, *text)
        assert ran.status == 0, ran.err
        assert json.loads(ran.out)["models"] == [alone[i] for i in order]
    ran = otfuse("eval", unmasked, models / "bert0", *text, "--ensemble")
    assert (ran.status, "an ensemble needs models that predict the same" in ran.err) == (1, True)


def test_what_does_not_fit_is_told_with_model_and_file(otfuse, models, data, tmp_path):
    few = save(small.causal_lm(vocabulary=6, length=16, **SIZES), tmp_path / "few")
    ran = otfuse("eval", models / "gpt20", few, "--data", data / "ids.npz", "-q")
    assert ran.status == 1
    assert ran.err.startswith(f"otfuse: model {few}: data {data / 'ids.npz'}: 'input_ids' holds ")
    assert "outside the model's 6 tokens of the vocabulary" in ran.err
    np.savez(tmp_path / "long.npz", pixel_values=np.zeros((2, 1, 8, 8), np.float32), labels=np.array([[0, 1], [1, 0]]))
    ran = otfuse("eval", models / "vit0", "--data", tmp_path / "long.npz", "-q")
    assert ran.err.startswith(
        f"otfuse: model {models / 'vit0'}: data {tmp_path / 'long.npz'}: 'labels' has shape [2, 2]"
    )


def test_labels_that_repeat_the_tokens_are_not_called_missing(otfuse, data, tmp_path):
    build("bert", 0).save_pretrained(tmp_path / "bare")
    config = json.loads((tmp_path / "bare/config.json").read_text())
    (tmp_path / "bare/config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "mask_token_id"}))
    ran = otfuse("eval", tmp_path / "bare", "--data", data / "pairs.npz", "-q")
    assert ran.status == 1
    assert (
        f"model {tmp_path / 'bare'}, data {data / 'pairs.npz'}: no mask token: labels that repeat the tokens" in ran.err
    )
    assert "without labels" not in ran.err
