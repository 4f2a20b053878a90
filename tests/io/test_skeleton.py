"""A model made without its weights, then filled from its files, is the model that the library loads; heads join their base."""

import pytest
import torch
import transformers
from safetensors.torch import load_file

from otfuse.core.recipe import read
from otfuse.errors import MatchError
from otfuse.io.checkpoint import load_model, open_checkpoint
from otfuse.io.parents import opened
from otfuse.io.stored import Stored
from otfuse.pipeline import fuse_checkpoints
from otfuse.testing.examples import EXAMPLES

HUGGING_FACE = [name for name, example in EXAMPLES.items() if example.from_config]


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_skeleton_and_files_are_the_model(name, tmp_path):
    model, inputs = EXAMPLES[name].build()
    for buffer in model.buffers():
        if buffer.dtype == torch.int64 and buffer.ndim == 0:
            buffer.fill_(7)
    model.save_pretrained(tmp_path)
    expected = load_model(open_checkpoint(tmp_path))
    (parent,) = opened([Stored(open_checkpoint(tmp_path))])
    made = parent.module
    held = dict(expected.named_buffers(remove_duplicate=False))
    assert held.keys() == dict(made.named_buffers(remove_duplicate=False)).keys()
    assert all(torch.equal(made.get_buffer(n), buffer) for n, buffer in held.items())
    state, own = expected.state_dict(), made.state_dict()
    assert {n for n, t in state.items() if t.is_floating_point()} == set(parent.weights)
    assert all(torch.equal(parent.weights[n], state[n]) for n in parent.weights)
    with torch.no_grad():
        for n in parent.weights:
            own[n].copy_(parent.weights[n])
        outputs = [[t for t in m(**inputs).to_tuple() if torch.is_tensor(t)] for m in (expected, made)]
    assert not made.training
    assert outputs[0]
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


LLAMA = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 40}
T5 = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 1,
    "num_heads": 2,
    "vocab_size": 40,
    "decoder_start_token_id": 0,
}
BERT = LLAMA | {"max_position_embeddings": 20}
IMAGE = {"image_size": 8, "patch_size": 4, "num_channels": 1} | LLAMA


def saved(folder, class_name, seed, **options):
    kind = getattr(transformers, class_name)
    torch.manual_seed(seed)
    kind(kind.config_class(**options)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("recipe", ["vanilla", "otfusion-wts"])
@pytest.mark.parametrize(
    ("anchor", "source", "options", "told"),
    [
        ("LlamaForCausalLM", "LlamaModel", LLAMA | {"num_key_value_heads": 2}, "has no lm_head.weight"),
        ("LlamaModel", "LlamaForCausalLM", LLAMA, "has no place for lm_head.weight"),
        ("BertModel", "BertForMaskedLM", BERT, "has no pooler.dense.weight"),
        ("BertForMaskedLM", "BertModel", BERT, "has no place for pooler.dense"),
        ("T5ForConditionalGeneration", "T5EncoderModel", T5, "has no decoder"),
        ("ViTForImageClassification", "ViTModel", IMAGE, "has no classifier"),
    ],
)
def test_a_base_and_a_head_are_joined_and_told(tmp_path, anchor, source, options, told, recipe):
    pair = [saved(tmp_path / n, kind, i, **options) for i, (n, kind) in enumerate({"a": anchor, "b": source}.items())]
    report = fuse_checkpoints(pair[0], [pair[1]], tmp_path / "out", recipe=read(recipe)).report
    assert any(told in note for note in report.notes), report.notes
    ours, theirs, made = (load_file(tmp_path / n / "model.safetensors") for n in ("a", "b", "out"))
    assert made.keys() == ours.keys()
    both = {
        name: next((k for k in theirs if f".{k}".endswith(f".{name}") or f".{name}".endswith(f".{k}")), None)
        for name in ours
    }
    assert sum(key is not None for key in both.values()) > 8
    if recipe == "vanilla":
        for name, key in both.items():
            mean = ours[name] if key is None else (ours[name] + theirs[key]) / 2
            assert torch.allclose(made[name], mean, atol=1e-6), name
    _, info = getattr(transformers, anchor).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info


def test_a_base_whose_config_ties_nothing_joins_a_tied_head(tmp_path):
    a = saved(tmp_path / "a", "LlamaForCausalLM", 0, **LLAMA, tie_word_embeddings=True)
    b = saved(tmp_path / "b", "LlamaModel", 1, **LLAMA, tie_word_embeddings=False)
    for recipe in ("vanilla", "otfusion-wts"):
        fuse_checkpoints(a, [b], tmp_path / recipe, recipe=read(recipe))
    made = load_file(tmp_path / "vanilla" / "model.safetensors")["model.embed_tokens.weight"]
    ours, theirs = (load_file(tmp_path / n / "model.safetensors") for n in "ab")
    assert torch.allclose(made, (ours["model.embed_tokens.weight"] + theirs["embed_tokens.weight"]) / 2, atol=1e-6)


def test_two_different_heads_are_one_sentence(tmp_path):
    a, b = (
        saved(tmp_path / "a", "BertForMaskedLM", 0, **BERT),
        saved(tmp_path / "b", "BertForSequenceClassification", 1, **BERT),
    )
    for recipe in ("vanilla", "otfusion-wts"):
        with pytest.raises(
            MatchError,
            match=r"their architectures differ \(only the (anchor|source) has '.*'\); give models of the same class",
        ):
            fuse_checkpoints(a, [b], tmp_path / "out", recipe=read(recipe))
    assert not (tmp_path / "out").exists()
