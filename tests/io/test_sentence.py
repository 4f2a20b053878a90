"""Folders of sentence-transformers: what is traced is transformer, pooling and dense layers; all of it is mixed.

That a result is opened by the package itself, and gives what :class:`SentenceModel` gives, was tried with its version 6.2.0.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import otfuse
from otfuse.errors import CheckpointError
from otfuse.flow.proof.act import act, draw
from otfuse.fusion.differences import differences
from otfuse.fusion.sides import traced
from otfuse.io.checkpoint import load_model, open_checkpoint
from otfuse.io.describe import describe
from otfuse.io.parents import given
from otfuse.io.pooling import Pooling
from otfuse.io.sentence import is_sentence_folder, sentence_files, transformer_folder
from otfuse.testing.text import tokenizer

WIDTH, OUT, TEXT = 16, 12, "the quick brown fox jumps over the lazy dog"
MEAN = {"word_embedding_dimension": WIDTH, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
TANH = "torch.nn.modules.activation.Tanh"


def dense(reads, writes, function=TANH, **more):
    return {"in_features": reads, "out_features": writes, "bias": True, "activation_function": function} | more


def lay(folder, layers, seed=0, sub="", pooler=True, package="sentence_transformers.models."):
    """A folder as the package saves it: ``layers`` are (class, settings), in sub-folders of their own."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=32
    )  # fmt: skip
    model = transformers.BertModel(config, add_pooling_layer=pooler).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * (p.shape[-1] ** -0.5 if p.ndim > 1 else 0.3))
    model.save_pretrained(folder / sub)
    tokenizer(TEXT, folder=folder / sub)
    listed = [{"idx": 0, "name": "0", "path": sub, "type": f"{package}Transformer"}]
    for at, (kind, settings) in enumerate(layers, 1):
        place = folder / f"{at}_{kind}"
        place.mkdir()
        listed.append({"idx": at, "name": str(at), "path": place.name, "type": f"{package}{kind}"})
        (place / "config.json").write_text(json.dumps(settings))
        weights = {}
        if kind == "Dense":
            shapes = {
                "linear.weight": (settings["out_features"], settings["in_features"]),
                "linear.bias": (settings["out_features"],),
            }
            weights = {name: torch.randn(shape) / 3 for name, shape in shapes.items()}
        if kind == "LayerNorm":
            weights = {"norm.weight": torch.rand(WIDTH) + 0.5, "norm.bias": torch.randn(WIDTH)}
        if weights:
            save_file(weights, place / "model.safetensors")
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


KINDS = {
    "mean and dense": ([("Pooling", MEAN), ("Dense", dense(WIDTH, OUT))], {}),
    "first token, two layers": ([("Pooling", {"pooling_mode": "cls"}), ("Dense", dense(WIDTH, 20)), ("Dense", dense(20, OUT)), ("Normalize", {})], {}),
    "two kinds beside each other": ([("Pooling", {"pooling_mode": ["max", "mean"]}), ("Dense", dense(2 * WIDTH, OUT))], {}),
    "sub-folder, norm": (
        [("Pooling", {"pooling_mode_lasttoken": True}), ("LayerNorm", {"dimension": WIDTH}), ("Dense", dense(WIDTH, OUT, "torch.nn.modules.linear.Identity"))],
        {"sub": "0_Transformer"},
    ),
    "without a pooler, tokens mapped": (
        [("Dense", dense(WIDTH, 20, module_input_name="token_embeddings")), ("Pooling", {"pooling_mode": "weightedmean"})],
        {"pooler": False, "package": "sentence_transformers.base.modules.dense."},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_a_copy_with_its_units_in_another_order_comes_back(name, tmp_path):
    layers, options = KINDS[name]
    anchor = lay(tmp_path / "anchor", layers, **options)
    gate = otfuse.verify(anchor)
    gate.require(1e-10)
    model = load_model(open_checkpoint(anchor))
    side = traced(given(model, "model"), None)
    stream = [s for s in side.graph.free if any("Dense" in m.tensor for m in s.members)]
    assert stream, "the stream does not reach the dense layer"
    weights = act([draw(s, 1) for s in side.graph.free if s.group.name == "PERMUTATION"], side.weights)
    copy = shutil.copytree(anchor, tmp_path / "copy")
    other = load_model(open_checkpoint(copy))
    other.load_state_dict(weights)
    ids = torch.arange(5, 25).reshape(2, 10)
    with torch.no_grad():
        assert torch.allclose(other(ids)["sentence_embedding"], model(ids)["sentence_embedding"], atol=1e-5)
    other.save_pretrained(copy)
    moved = Path(copy) / sentence_files(copy)[next(p for p in sentence_files(copy) if "Dense" in p)]
    assert not torch.equal(
        load_file(moved)["linear.weight"], load_file(anchor / moved.relative_to(copy))["linear.weight"]
    )
    found = otfuse.fuse([anchor, copy], "otfusion-wts", options={"otfusion.solver": "emd"}).model.state_dict()
    for key, tensor in model.state_dict().items():
        assert torch.allclose(found[key], tensor, atol=1e-5), key


def test_the_command_writes_a_folder_of_the_same_kind(tmp_path, otfuse):
    layers, options = KINDS["sub-folder, norm"]
    a, b = (lay(tmp_path / n, layers, seed=i, **options) for i, n in enumerate("ab"))
    (a / "config_sentence_transformers.json").write_text('{"prompts": {"query": "q: "}}')
    (a / "README.md").write_text("old")
    done = otfuse("fuse", a, b, "--out", tmp_path / "out", "--recipe", "vanilla", "-q")
    assert done.status == 0, done.err
    names = [sorted(str(p.relative_to(f)) for p in f.rglob("*")) for f in (a, tmp_path / "out")]
    assert names[1] == sorted([*names[0], "fusion.json"])
    for file in sentence_files(a).values():
        x, y, mean = (load_file(f / file) for f in (a, b, tmp_path / "out"))
        assert mean.keys() == x.keys()
        assert all(torch.allclose(mean[k], (x[k] + y[k]) / 2) for k in x)


def test_layers_that_compute_otherwise_are_told(tmp_path):
    other = [("Pooling", {"pooling_mode": "cls"}), ("Dense", dense(WIDTH, OUT))]
    folders = [lay(tmp_path / n, layers) for n, layers in (("a", KINDS["mean and dense"][0]), ("b", other))]
    (note,) = otfuse.fuse(folders, "vanilla").report.notes
    assert "1_Pooling.pooling_mode 'cls' (not set)" in note
    assert differences(describe([open_checkpoint(f) for f in folders])) == [note]


def test_files_are_told_by_the_prefix_of_their_names(tmp_path):
    folder = lay(tmp_path / "a", *KINDS["sub-folder, norm"][:1], sub="0_Transformer")
    assert sentence_files(folder) == {
        "transformer.": "0_Transformer/model.safetensors",
        "2_LayerNorm.": "2_LayerNorm/model.safetensors",
        "3_Dense.": "3_Dense/model.safetensors",
    }
    assert transformer_folder(folder) == folder / "0_Transformer"


def test_pooling_alone_needs_no_model_of_its_own(tmp_path):
    folder = lay(tmp_path / "a", [("Pooling", MEAN), ("Normalize", {})])
    assert not is_sentence_folder(folder)
    assert isinstance(load_model(open_checkpoint(folder)), transformers.BertModel)


def test_the_class_with_a_head_that_config_names_is_not_what_is_loaded(tmp_path):
    folder = lay(tmp_path / "a", KINDS["mean and dense"][0], pooler=False)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    assert type(load_model(open_checkpoint(folder)).transformer) is transformers.BertModel


MASK = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
TOKENS = torch.arange(8.0).reshape(2, 4, 1)


@pytest.mark.parametrize(
    ("mode", "values"),
    [
        ("cls", [0, 5]),
        ("lasttoken", [1, 7]),
        ("max", [1, 7]),
        ("mean", [0.5, 6]),
        ("mean_sqrt_len_tokens", [1 / 2**0.5, 18 / 3**0.5]),
        ("weightedmean", [2 / 3, (5 + 12 + 21) / 6]),
    ],
)
def test_what_is_padded_on_either_side_is_not_pooled(mode, values):
    pooled = Pooling(mode)({"token_embeddings": TOKENS, "attention_mask": MASK})["sentence_embedding"]
    assert torch.allclose(pooled.flatten(), torch.tensor(values, dtype=torch.float32))


def edit(folder, change):
    listed = json.loads((folder / "modules.json").read_text())
    change(listed)
    (folder / "modules.json").write_text(json.dumps(listed))


ENDS = {
    "unknown layer": (lambda f: edit(f, lambda m: m[1].update(type="sentence_transformers.models.CNN")), "names sentence_transformers.models.CNN, which otfuse cannot follow; to fuse the transformer alone, give a copy"),
    "code of its own": (lambda f: edit(f, lambda m: m[0].update(type="custom_st.Transformer")), "names custom_st.Transformer, which otfuse cannot follow"),
    "outside": (lambda f: edit(f, lambda m: m[2].update(path="../else")), "modules.json is no list of modules with a 'type' and a 'path' inside"),
    "no list": (lambda f: (f / "modules.json").write_text("3"), "modules.json is no list of modules"),
    "no JSON": (lambda f: (f / "modules.json").write_text("[{"), "modules.json is not valid JSON"),
    "function": (lambda f: (f / "2_Dense/config.json").write_text(json.dumps(dense(WIDTH, OUT, "os.system"))), "2_Dense/config.json does not describe a Dense layer (the function os.system is none of torch.nn)"),
    "sizes": (lambda f: (f / "2_Dense/config.json").write_text(json.dumps(dense(WIDTH, OUT + 1))), "config.json and weights in 2_Dense do not belong together"),
    "settings": (lambda f: (f / "2_Dense/config.json").write_text("{}"), "2_Dense/config.json does not describe a Dense layer"),
    "settings of another kind": (lambda f: (f / "1_Pooling/config.json").write_text('["mean"]'), "1_Pooling/config.json does not describe a Pooling layer"),
    "pooling": (lambda f: (f / "1_Pooling/config.json").write_text('{"pooling_mode": "median"}'), "(unknown pooling 'median')"),
    "pickle": (lambda f: (f / "2_Dense/model.safetensors").rename(f / "2_Dense/pytorch_model.bin"), "pytorch_model.bin is a pickle file"),
    "damaged": (lambda f: (f / "2_Dense/model.safetensors").write_bytes(b"xx"), "model.safetensors is truncated or damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_what_cannot_be_followed_is_refused_before_weights_are_read(name, tmp_path):
    folder = lay(tmp_path / "a", KINDS["mean and dense"][0])
    spoil, said = ENDS[name]
    spoil(folder)
    with pytest.raises(CheckpointError, match=re.escape(said)):
        open_checkpoint(folder)


def test_pickled_layers_are_read_if_allowed(tmp_path):
    folder = lay(tmp_path / "a", KINDS["mean and dense"][0])
    before = load_model(open_checkpoint(folder)).state_dict()
    torch.save(load_file(folder / "2_Dense/model.safetensors"), folder / "2_Dense/pytorch_model.bin")
    (folder / "2_Dense/model.safetensors").unlink()
    after = load_model(open_checkpoint(folder, allow_pickle=True)).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
