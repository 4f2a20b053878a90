"""Open, load, write: what comes out is what the model's own save_pretrained writes, byte for byte."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from otfuse.errors import OutputError, UsageError
from otfuse.io.checkpoint import load_model, load_tensors, open_checkpoint
from otfuse.io.kinds import settled
from otfuse.io.stored import Stored
from otfuse.io.writer import check_shard_size, holds, write_checkpoint


def weights(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("model*"))}


def reload(folder, **options):
    config = json.loads((folder / "config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    model, info = kind.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["bert", "gpt2", "vit", "t5", "llama"])
def test_written_as_the_model_itself_saves(build, kind, dtype, tmp_path):
    original = build(kind, dtype)
    original.save_pretrained(tmp_path / "anchor")
    anchor = open_checkpoint(tmp_path / "anchor")
    model = load_model(anchor)
    assert not model.training
    assert anchor.architecture == type(original).__name__
    assert {info.dtype for info in anchor.tensors.values()} == {dtype}
    write_checkpoint(tmp_path / "out", model, anchor)
    assert weights(tmp_path / "out") == weights(tmp_path / "anchor")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written == json.loads((tmp_path / "anchor/config.json").read_text())
    again = reload(tmp_path / "out")
    for name, tensor in original.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_other_dtype(build, kind, tmp_path):
    model = build(kind)
    write_checkpoint(tmp_path / "out", model, None, dtype=torch.float16)
    found = open_checkpoint(tmp_path / "out")
    assert {t.dtype for t in found.tensors.values()} == {torch.float16}
    assert found.config["dtype"] == "float16"
    assert {p.dtype for p in model.parameters()} == {torch.float32}, "the model given is not changed"
    stored, state = dict(load_tensors(found)), model.state_dict()
    assert all(torch.equal(tensor, state[name].half()) for name, tensor in stored.items())
    original = build(kind)
    original.save_pretrained(tmp_path / "plain")
    assert stored.keys() == open_checkpoint(tmp_path / "plain").tensors.keys(), "ties stay ties in the other type"
    reload(tmp_path / "out")


def test_model_computed_in_float32_goes_back_to_the_anchors_type(build, tmp_path):
    build("llama", torch.bfloat16).save_pretrained(tmp_path / "anchor")
    anchor = open_checkpoint(tmp_path / "anchor")
    model = load_model(anchor, dtype=torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    write_checkpoint(tmp_path / "out", model, anchor)
    assert weights(tmp_path / "out") == weights(tmp_path / "anchor")


def test_types_of_an_anchor_are_found_under_any_name_and_the_config_keeps_its_own(build, tmp_path):
    build("bert", torch.float16).save_pretrained(tmp_path / "anchor")
    stored = dict(load_tensors(open_checkpoint(tmp_path / "anchor")))
    bare = {name.removeprefix("bert."): t.float() if "LayerNorm" in name else t for name, t in stored.items()}
    bare = {n.replace("LayerNorm.weight", "LayerNorm.gamma"): t for n, t in bare.items()}
    save_file(bare, tmp_path / "anchor/model.safetensors", metadata={"format": "pt"})
    anchor = open_checkpoint(tmp_path / "anchor")
    write_checkpoint(tmp_path / "out", load_model(anchor, dtype=torch.float32), anchor)
    written = open_checkpoint(tmp_path / "out")
    assert {n for n, i in written.tensors.items() if i.dtype == torch.float32} == {
        n for n in written.tensors if n.endswith("LayerNorm.bias")
    }, "what the library renamed gets the usual type"
    assert written.config["dtype"] == "float16"
    assert holds(tmp_path / "out", load_model(anchor, dtype=torch.float32))


def test_types_in_parts_of_a_config_are_settled_too():
    config = {"dtype": "float32", "text_config": {"dtype": "float32", "size": 3}, "vision_config": {"dtype": "float32"}}
    anchor = {"torch_dtype": "torch.bfloat16", "text_config": {"dtype": "float16"}, "dtype": None}
    own = settled(config, anchor)
    assert (own["dtype"], own["text_config"], own["vision_config"]["dtype"]) == (
        "bfloat16", {"dtype": "float16", "size": 3}, "float32",
    )  # fmt: skip
    assert settled(config, "float64")["vision_config"] == {"dtype": "float64"}


def test_shards(build, tmp_path):
    model = build("gpt2")
    model.save_pretrained(tmp_path / "anchor", max_shard_size="5KB")
    anchor = open_checkpoint(tmp_path / "anchor")
    assert len(anchor.files) > 2
    write_checkpoint(tmp_path / "out", load_model(anchor), anchor, shard_size="5KB")
    load_model(anchor).save_pretrained(tmp_path / "own", max_shard_size="5KB")  # splits unlike the model not yet loaded
    assert weights(tmp_path / "out") == weights(tmp_path / "own")
    assert "model.safetensors.index.json" in weights(tmp_path / "out")
    reload(tmp_path / "out")
    assert dict(load_tensors(anchor)).keys() == anchor.tensors.keys()
    write_checkpoint(tmp_path / "one", load_model(anchor), anchor)
    assert open_checkpoint(tmp_path / "one").files == ("model.safetensors",)


def test_format_metadata_and_companions(tmp_path, bert_folder):
    companions = {
        "vocab.txt": "a\nb\n",
        "tokenizer_config.json": "{}",
        "generation_config.json": '{"x": 1}',
        "chat_template.jinja": "hi",
        "LICENSE": "L",
        ".gitattributes": "x",
    }
    others = {
        "trainer_state.json": "{}",
        "README.md": "old",
        "fusion.json": "{}",
        "run.py": "boom",
        "optimizer.pt": "x",
    }
    for name, text in (companions | others).items():
        (bert_folder / name).write_text(text)
    anchor = open_checkpoint(bert_folder)
    write_checkpoint(
        tmp_path / "deep/out", load_model(anchor), anchor, files={"README.md": "new", "fusion.json": "{1}"}
    )
    out = tmp_path / "deep/out"
    assert {p.name for p in out.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "fusion.json",
        *companions,
    }
    assert all((out / name).read_text() == text for name, text in companions.items())
    assert (out / "README.md").read_text() == "new"
    with safe_open(out / "model.safetensors", "pt") as handle:
        assert handle.metadata() == {"format": "pt"}


def test_hash_tells_weights_and_config_apart(build, tmp_path, bert_folder):
    def hashed(folder):
        return Stored(open_checkpoint(folder)).hash()

    first = hashed(bert_folder)
    assert first == hashed(bert_folder)
    assert len(first) == 64
    build("bert", seed=1).save_pretrained(tmp_path / "other")
    assert hashed(tmp_path / "other") != first
    build("bert").save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    (tmp_path / "shards" / "config.json").write_bytes((bert_folder / "config.json").read_bytes())
    assert hashed(tmp_path / "shards") == first
    config = bert_folder / "config.json"
    config.write_text(config.read_text() + " ")
    assert hashed(bert_folder) != first


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("steps", torch.tensor(3))


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_plain_module_stores_shared_tensors_once(dtype, tmp_path):
    model = Plain()
    write_checkpoint(tmp_path / "out", model, None, dtype=dtype)
    with safe_open(tmp_path / "out/model.safetensors", "pt") as handle:
        stored = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        assert handle.metadata()["format"] == "pt"
    assert len([name for name in stored if name.endswith("weight")]) == 1
    assert stored["first.bias"].dtype == (dtype or torch.float32)
    assert stored["steps"] == 3
    assert stored["steps"].dtype == torch.int64


def test_values_that_overflow_or_are_not_finite_are_not_written(tmp_path):
    model = Plain()
    model.first.bias.data[0] = 1e5
    with pytest.raises(
        OutputError, match=r"tensor 'first\.bias' overflows in the type asked for; choose a wider --dtype"
    ):
        write_checkpoint(tmp_path / "out", model, None, dtype=torch.float16)
    model.first.bias.data[0] = float("nan")
    with pytest.raises(OutputError, match=r"tensor 'first\.bias' has values that are not finite; nothing was written"):
        write_checkpoint(tmp_path / "out", model, None)
    assert list(tmp_path.iterdir()) == []


def test_shard_size_wording():
    check_shard_size("5GB")
    with pytest.raises(
        UsageError, match=r"shard size '5 apples': write a whole number and one of KB, .*, for example 5GB"
    ):
        check_shard_size("5 apples")


def test_loading_is_silent(bert_folder, capfd):
    load_model(open_checkpoint(bert_folder))
    assert capfd.readouterr() == ("", "")
