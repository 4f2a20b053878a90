"""Every way a checkpoint can be wrong gives its one sentence."""

import json
import re
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from otfuse.errors import CheckpointError, DeviceError
from otfuse.io.checkpoint import finite, load_model, open_checkpoint


def refused(sentence, path, **options):
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'checkpoint {path}: {sentence}')}$"):
        open_checkpoint(path, **options)


def refused_load(sentence, folder):
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'checkpoint {folder}: {sentence}')}$"):
        load_model(open_checkpoint(folder))


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_missing_folder(tmp_path):
    refused("no such folder; check the path", tmp_path / "absent")


def test_name_not_in_the_local_cache(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    refused(
        "no such folder, and not in the local Hugging Face cache either; check the path, or download the model first",
        "nobody/absent@v1",
    )


def test_name_in_the_local_cache(monkeypatch, tmp_path, build):
    snapshot = tmp_path / "hub/models--some--model/snapshots/abc"
    build("vit").save_pretrained(snapshot)
    refs = tmp_path / "hub/models--some--model/refs"
    refs.mkdir(parents=True)
    (refs / "v1").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = open_checkpoint("some/model@v1")
    assert found.folder.resolve() == snapshot.resolve()
    assert found.name == "some/model@v1"
    load_model(found)


def test_a_file(tmp_path):
    (tmp_path / "model.safetensors").write_text("x")
    refused("this is a file; give the folder that holds config.json and the weights", tmp_path / "model.safetensors")


def test_empty_folder(tmp_path):
    refused("the folder is empty; give a folder with config.json and model.safetensors", tmp_path)


def test_no_config(bert_folder):
    (bert_folder / "config.json").unlink()
    refused("no config.json in the folder; give a folder saved by save_pretrained", bert_folder)


def test_config_not_json(bert_folder):
    (bert_folder / "config.json").write_text('{\n"a": 1,\n}')
    sentence = (
        "config.json is not valid JSON (line 3: Expecting property name enclosed in double quotes); mend that line"
    )
    with pytest.raises(CheckpointError, match="is not valid JSON") as caught:
        open_checkpoint(bert_folder)
    assert str(caught.value).startswith(f"checkpoint {bert_folder}: config.json is not valid JSON (line ")
    assert str(caught.value).endswith("); mend that line"), sentence
    (bert_folder / "config.json").write_bytes(b"\xff\xfe\x00")
    refused("config.json is not text in UTF-8; download it again", bert_folder)
    (bert_folder / "config.json").write_text("[]")
    refused("config.json must hold a JSON object, not a list", bert_folder)


def test_no_weights(bert_folder):
    weights = bert_folder / "model.safetensors"
    weights.rename(bert_folder / "other.safetensors")
    expected = "expected model.safetensors, or its shards with model.safetensors.index.json"
    refused(f"no weights (other.safetensors is none of the names that are read); {expected}", bert_folder)
    (bert_folder / "other.safetensors").unlink()
    refused(f"no weights; {expected}", bert_folder)


@pytest.mark.parametrize("cut", [0, 5, 300, -1])
def test_truncated(cut, bert_folder):
    path = bert_folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(bert_folder)
    start = f"checkpoint {bert_folder}: model.safetensors is truncated or damaged ("
    data = len(whole) - 8 - struct.unpack("<Q", whole[:8])[0]
    reason = (
        f"{data} bytes of weights expected, {data - 1} found"
        if cut < 0
        else f"its header does not fit into {cut} bytes"
    )
    assert str(caught.value) == f"{start}{reason}); download it again"


@pytest.mark.parametrize(
    "header", [b"not json", b"[1, 2]", b'{"a": 3}', b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": "no"}}']
)
def test_header_of_another_kind(header, bert_folder):
    (bert_folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    refused(
        "model.safetensors is truncated or damaged (its header is not what safetensors writes); download it again",
        bert_folder,
    )


def test_wrong_length_and_unknown_type(bert_folder):
    for entry, sentence in [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "model.safetensors is truncated or damaged (tensor 'a' has the wrong length); download it again"),
        ({"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}, "tensor 'a' in model.safetensors has the unknown type X9; convert it"),
    ]:  # fmt: skip
        header = json.dumps({"a": entry}).encode()
        (bert_folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"0000")
        refused(sentence, bert_folder)


@pytest.fixture
def sharded(tmp_path, build):
    build("gpt2").save_pretrained(tmp_path / "sharded", max_shard_size="5KB")
    return tmp_path / "sharded"


def test_shard_missing(sharded):
    (sharded / "model-00002-of-00007.safetensors").unlink()
    refused(
        "shard model-00002-of-00007.safetensors, named in model.safetensors.index.json, is missing; download it again",
        sharded,
    )


def test_shard_outside_the_folder(sharded):
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret"}}))
    refused("shard ../secret, named in model.safetensors.index.json, is missing; download it again", sharded)


def test_tensors_missing_from_shards(sharded):
    index = sharded / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["ghost"] = "model-00001-of-00007.safetensors"
    index.write_text(json.dumps(data))
    refused(
        "1 tensors named in model.safetensors.index.json are missing from the shards, first 'ghost' from "
        "model-00001-of-00007.safetensors; download it again",
        sharded,
    )
    index.write_text("{}")
    refused("model.safetensors.index.json has no 'weight_map' from tensors to files; download it again", sharded)


def test_pickle(bert_folder, build):
    weights = bert_folder / "model.safetensors"
    tensors = load_file(weights)
    weights.unlink()
    sentence = (
        "pytorch_model.bin is a pickle file, which can run code when it is read; convert it to safetensors, or pass "
        "--allow-pickle to load its weights only"
    )
    torch.save(tensors, bert_folder / "pytorch_model.bin")
    refused(sentence, bert_folder)
    found = open_checkpoint(bert_folder, allow_pickle=True)
    assert found.pickled
    assert {name: info.shape for name, info in found.tensors.items()} == {n: tuple(t.shape) for n, t in tensors.items()}
    state = build("bert").state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in load_model(found).state_dict().items())
    (bert_folder / "pytorch_model.bin").rename(bert_folder / "weights.pt")
    refused(sentence.replace("pytorch_model.bin", "weights.pt"), bert_folder)


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("hostile-was-here"),))


def test_hostile_pickle_does_not_run(bert_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (bert_folder / "model.safetensors").unlink()
    torch.save({"a": Hostile()}, bert_folder / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"pytorch_model\.bin cannot be read as weights only \(.*\); convert it to safetensors$"
    ):
        open_checkpoint(bert_folder, allow_pickle=True)
    assert not Path("hostile-was-here").exists()
    torch.save({"a": 3}, bert_folder / "pytorch_model.bin")
    refused(
        "pytorch_model.bin holds more than named tensors; save the model's state_dict alone",
        bert_folder,
        allow_pickle=True,
    )


def test_custom_code(bert_folder):
    (bert_folder / "mine.py").write_text("raise SystemExit('ran')")
    edit(bert_folder, auto_map={"AutoModelForMaskedLM": "mine.Mine"}, architectures=["Mine"])
    refused(
        "config.json asks to run code that comes with the checkpoint (auto_map); read that code, then pass "
        "--trust-remote-code if you trust it",
        bert_folder,
    )


@pytest.mark.usefixtures("code_cache")
def test_custom_code_that_is_trusted(tmp_path):
    folder = tmp_path / "custom"
    folder.mkdir()
    (folder / "mine.py").write_text(
        "import torch\n"
        "from transformers import PreTrainedConfig, PreTrainedModel\n"
        "class MineConfig(PreTrainedConfig):\n    model_type = 'mine'\n"
        "class Mine(PreTrainedModel):\n    config_class = MineConfig\n"
        "    def __init__(self, config):\n        super().__init__(config)\n        self.layer = torch.nn.Linear(2, 2)\n"
        "        self.post_init()\n"
    )
    auto = {"AutoConfig": "mine.MineConfig", "AutoModel": "mine.Mine"}
    (folder / "config.json").write_text(json.dumps({"architectures": ["Mine"], "model_type": "mine", "auto_map": auto}))
    tensors = {"layer.weight": torch.eye(2), "layer.bias": torch.ones(2)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = load_model(open_checkpoint(folder, trust_remote_code=True))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


def test_quantised(bert_folder):
    edit(bert_folder, quantization_config={"bits": 4})
    refused("the weights are quantised and cannot be averaged; give the checkpoint before quantisation", bert_folder)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(bad, bert_folder):
    edit_weights(bert_folder, lambda t: t["bert.encoder.layer.1.output.dense.bias"].__setitem__(3, bad))
    refused_load(
        "tensor 'bert.encoder.layer.1.output.dense.bias' in model.safetensors has values that are not finite; give a sound checkpoint",
        bert_folder,
    )


def test_overflow_in_the_type_asked_for(bert_folder):
    edit_weights(bert_folder, lambda t: t["bert.encoder.layer.1.output.dense.bias"].__setitem__(3, 1e6))
    with pytest.raises(CheckpointError, match=r"bias' overflows in the type asked for; choose a wider --dtype$"):
        load_model(open_checkpoint(bert_folder), dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_finite(dtype):
    assert finite(torch.tensor([0.0, -2.0]).to(dtype))
    assert not finite(torch.tensor([0.0, float("nan"), 1.0]).to(dtype))
    assert finite(torch.tensor([], dtype=dtype))


def test_missing_tensor(bert_folder):
    edit_weights(bert_folder, lambda t: t.pop("bert.encoder.layer.1.output.dense.bias"))
    refused_load(
        "BertForMaskedLM needs 1 tensors that the files lack, first 'bert.encoder.layer.1.output.dense.bias'; config.json and "
        "weights do not belong together",
        bert_folder,
    )


def test_other_shape(bert_folder):
    edit_weights(bert_folder, lambda t: t.__setitem__("bert.encoder.layer.1.output.dense.bias", torch.zeros(7)))
    refused_load(
        "BertForMaskedLM wants 'bert.encoder.layer.1.output.dense.bias' with shape [16], the file has [7]; config.json and "
        "weights do not belong together",
        bert_folder,
    )


def test_fewer_blocks_than_stored(bert_folder):
    edit(bert_folder, num_hidden_layers=1)
    refused_load(
        "BertForMaskedLM leaves 16 tensors of the files unused, first "
        "'bert.encoder.layer.1.attention.output.LayerNorm.bias'; config.json and weights do not belong together",
        bert_folder,
    )


def test_bias_switched_off(tmp_path, build):
    build("llama").save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda t: t.__setitem__("model.layers.0.self_attn.q_proj.bias", torch.zeros(16)))
    refused_load(
        "LlamaForCausalLM leaves 1 tensors of the files unused, first 'model.layers.0.self_attn.q_proj.bias'; config.json and "
        "weights do not belong together",
        tmp_path,
    )


def test_a_head_for_another_task_is_left_aside(bert_folder, caplog):
    edit_weights(bert_folder, lambda t: t.__setitem__("cls.seq_relationship.weight", torch.zeros(2, 16)))
    load_model(open_checkpoint(bert_folder))
    assert "leaves 1 tensors of the files unused, first 'cls.seq_relationship.weight'" in caplog.text


def test_old_names_on_disk(bert_folder, build):
    def rename(tensors):
        for name in [n for n in tensors if "LayerNorm" in n]:
            tensors[name.replace("weight", "gamma").replace("bias", "beta")] = tensors.pop(name)

    edit_weights(bert_folder, rename)
    state = build("bert").state_dict()
    loaded = load_model(open_checkpoint(bert_folder)).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_unknown_class(bert_folder):
    edit(bert_folder, architectures=["NoSuchModel"])
    with pytest.raises(
        CheckpointError, match=r"names the class 'NoSuchModel', which transformers \S+ does not have; upgrade"
    ):
        load_model(open_checkpoint(bert_folder))


def test_config_value_of_the_wrong_type(bert_folder):
    edit(bert_folder, hidden_size="wide")
    with pytest.raises(
        CheckpointError, match=r"cannot be loaded \(.*'hidden_size'.*expected int, got str.*\); check its"
    ):
        load_model(open_checkpoint(bert_folder))


def test_impossible_config(bert_folder):
    edit(bert_folder, hidden_size=15)
    with pytest.raises(
        CheckpointError, match=r"BertForMaskedLM cannot be loaded \(The hidden size .*\); check its config\.json$"
    ):
        load_model(open_checkpoint(bert_folder))


def test_bad_device(bert_folder):
    with pytest.raises(
        DeviceError, match=r"^device nonsense: the model of .* cannot go there \(.*\); use --device cpu$"
    ):
        load_model(open_checkpoint(bert_folder), device="nonsense")


def test_settings_beside_the_weights_that_are_cut_short(bert_folder):
    (bert_folder / "generation_config.json").write_text('{"_fro')
    with pytest.raises(CheckpointError, match=r"generation_config.json is not valid JSON .line 1: .*; mend that line"):
        open_checkpoint(bert_folder)
