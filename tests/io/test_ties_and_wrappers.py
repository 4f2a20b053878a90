"""Heads that a config ties and a file does not, and names that a wrapper changed: nothing is lost, and the result loads."""

import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import otfuse
from otfuse.core.recipe import read
from otfuse.errors import MatchError
from otfuse.pipeline import fuse_checkpoints

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
RECIPES = ("vanilla", "otfusion-wts")


def llama(folder, seed, *, tied=True):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24,
        vocab_size=40, max_position_embeddings=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=tied,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def weights(folder):
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def put(folder, tensors):
    save_file({name: t.clone() for name, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def own_head(folder, seed):
    """The config says tied, the file has a head of its own, which stock transformers loads."""
    held = weights(llama(folder, seed))
    return put(folder, held | {HEAD: held[EMBEDDING] + torch.randn(40, 16, generator=torch.Generator().manual_seed(9))})


def head_only(folder, seed):
    held = weights(llama(folder, seed))
    return put(folder, {HEAD if name == EMBEDDING else name: tensor for name, tensor in held.items()})


def sharded(folder, seed):
    """Embedding and head in two files."""
    held = weights(own_head(folder, seed))
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + (name == HEAD)}-of-00002.safetensors" for name in held}
    for file in set(files.values()):
        save_file({n: t for n, t in held.items() if files[n] == file}, folder / file, metadata={"format": "pt"})
    index = '{"metadata": {}, "weight_map": {' + ", ".join(f'"{n}": "{f}"' for n, f in files.items()) + "}}"
    (folder / "model.safetensors.index.json").write_text(index)
    return folder


def fuse(place, anchor, source, recipe):
    report = fuse_checkpoints(str(anchor), [str(source)], place / "out", recipe=read(recipe)).report
    model, info = transformers.LlamaForCausalLM.from_pretrained(place / "out", output_loading_info=True)
    assert not any(info.values()), info
    return model, report.notes


KINDS = {"tied": llama, "own": own_head, "head only": head_only, "sharded": sharded}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("anchor", "source"), [("own", "tied"), ("own", "sharded"), ("sharded", "head only"), ("tied", "head only"), ("head only", "tied")]
)  # fmt: skip
def test_both_heads_are_mixed(tmp_path, anchor, source, recipe):
    a, b = KINDS[anchor](tmp_path / "a", 0), KINDS[source](tmp_path / "b", 1)
    model, _ = fuse(tmp_path, a, b, recipe)
    alone = [transformers.LlamaForCausalLM.from_pretrained(folder).eval() for folder in (a, b)]
    expected = otfuse.fuse(alone, recipe, verify=False).model.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, expected[name], atol=1e-5), name
    if recipe == "vanilla":
        assert torch.allclose(model.lm_head.weight, sum(m.lm_head.weight for m in alone) / 2, atol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("anchor", ["tied", "head only"])
def test_a_head_that_the_anchor_has_no_place_for_is_refused(tmp_path, anchor, recipe):
    a, b = KINDS[anchor](tmp_path / "a", 0), own_head(tmp_path / "b", 1)
    with pytest.raises(MatchError, match=r"are one tensor in the anchor and two in the source"):
        fuse(tmp_path, a, b, recipe)
    assert not (tmp_path / "out").exists()


WRAPPED = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "data parallel": lambda name: f"module.{name}",
    "adapter": lambda name: f"base_model.model.{name}",
    "nested": lambda name: f"base_model.model._orig_mod.module.{name}",
    "a layer": lambda name: name.replace("layers.0.", "layers.0._orig_mod."),
    "some": lambda name: f"module.{name}" if "mlp" in name else name,
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("which", ["a", "ab"])
def test_names_that_a_wrapper_changed_are_read_and_written_without_it(tmp_path, kind, which):
    folders = [llama(tmp_path / name, seed, tied=False) for seed, name in enumerate("ab")]
    means = {name: (tensor + weights(folders[1])[name]) / 2 for name, tensor in weights(folders[0]).items()}
    for folder in folders:
        if folder.name in which:
            put(folder, {WRAPPED[kind](name): tensor for name, tensor in weights(folder).items()})
    _, notes = fuse(tmp_path, *folders, "vanilla")
    assert len([note for note in notes if "have names that a wrapper changed" in note]) == len(which)
    assert all(torch.allclose(means.pop(name), tensor, atol=1e-6) for name, tensor in weights(tmp_path / "out").items())
    assert not means


def test_one_wrapped_model_aligned_with_another(tmp_path):
    folders = [llama(tmp_path / name, seed) for seed, name in enumerate("ab")]
    wrapped = [put(shutil.copytree(f, tmp_path / f"{f.name}w"), {f"module.{n}": t for n, t in weights(f).items()}) for f in folders]  # fmt: skip
    plain = fuse(tmp_path, *folders, "otfusion-wts")[0].state_dict()
    shutil.rmtree(tmp_path / "out")
    found = fuse(tmp_path, *wrapped, "otfusion-wts")[0].state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())
