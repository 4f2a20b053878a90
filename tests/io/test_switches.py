"""Switches that only concern running stop nothing, and the result keeps them as the anchor has them."""

import json

import pytest
import torch
import transformers

import otfuse as api
from otfuse.io.checkpoint import load_model, open_checkpoint
from otfuse.io.switches import neutral, restored

SWITCHES = [
    {"output_attentions": True},
    {"output_attentions": True, "attn_implementation": "sdpa"},
    {"return_dict": False, "output_hidden_states": True, "torchscript": True},
    {"use_return_dict": False},
    {"attn_implementation": "flash_attention_2", "gradient_checkpointing": True},
    {"_attn_implementation": "flash_attention_3", "output_attentions": True},
    {"attn_implementation": "flex_attention"},
    {"attn_implementation": "nobody/knows"},
    {"experts_implementation": "grouped_mm", "compile_config": {}, "cache_implementation": "quantized"},
]


def edit(folder, change, name="config.json"):
    path = folder / name
    held = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(held | change))
    return folder


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_a_folder_with_such_a_switch_is_fused(switches, build, tmp_path, otfuse):
    folders = []
    for seed, name in enumerate("ab"):
        build("llama", seed=seed).save_pretrained(tmp_path / name)
        folders.append(edit(tmp_path / name, switches))
    done = otfuse("fuse", *folders, "--out", tmp_path / "out", "-q")
    assert done.status == 0, done.err
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written.items() >= switches.items()
    assert (
        written.keys() - switches.keys()
        == json.loads((tmp_path / "a/config.json").read_text()).keys() - switches.keys()
    )


@pytest.mark.parametrize(
    "settings", [{"cache_implementation": "bogus"}, {"max_new_tokens": -1}, {"num_return_sequences": 3}], ids=str
)
def test_settings_of_generation_that_the_library_refuses_go_along(settings, build, tmp_path, otfuse):
    folders = []
    for seed, name in enumerate("ab"):
        build("llama", seed=seed).save_pretrained(tmp_path / name)
        folders.append(edit(tmp_path / name, settings, "generation_config.json"))
    done = otfuse("fuse", *folders, "--out", tmp_path / "out", "-q", "--recipe", "vanilla")
    assert done.status == 0, done.err
    assert json.loads((tmp_path / "out/generation_config.json").read_text()).items() >= settings.items()


def test_settings_of_generation_that_are_sound_stay_with_the_module(build, tmp_path):
    build("llama").save_pretrained(tmp_path)
    edit(tmp_path, {"max_new_tokens": 7}, "generation_config.json")
    assert load_model(open_checkpoint(edit(tmp_path, SWITCHES[0]))).generation_config.max_new_tokens == 7


def test_switches_of_parts(tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    vision = transformers.CLIPVisionConfig(**small, image_size=8, patch_size=4)
    text = transformers.CLIPTextConfig(**small, vocab_size=40)
    model = transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=8))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    part = {**config["vision_config"], "attn_implementation": "flash_attention_2", "output_attentions": True}
    found = load_model(open_checkpoint(edit(tmp_path, {"vision_config": part})))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in found.state_dict().items())


def test_only_what_concerns_running_is_taken_out_and_put_back():
    own = {"size": 3, "output_attentions": True, "part": {"torchscript": True, "depth": 2}}
    assert neutral(own) == {"size": 3, "part": {"depth": 2}}
    assert restored({"size": 4, "part": {"depth": 2, "torchscript": False}}, own) == own | {"size": 4}


def test_a_base_without_its_pooling_layer_is_loaded_as_it_is(tmp_path):
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=40
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "a")
    model = load_model(open_checkpoint(tmp_path / "a"))
    assert model.pooler is None
    assert api.trace(model).free


def test_finetune_writes_what_it_trained_whatever_the_switches_say(build, tmp_path, otfuse):
    build("llama").save_pretrained(tmp_path / "a")
    edit(tmp_path / "a", SWITCHES[1])
    edit(tmp_path / "a", {"max_new_tokens": -1}, "generation_config.json")
    ids = torch.randint(0, 40, (4, 8), generator=torch.Generator().manual_seed(0)).numpy()
    import numpy as np

    np.savez(tmp_path / "d.npz", input_ids=ids, labels=ids)
    done = otfuse(
        "finetune", tmp_path / "a", "--data", tmp_path / "d.npz", "--out", tmp_path / "out", "--steps", 1, "-q"
    )
    assert done.status == 0, done.err
    assert json.loads((tmp_path / "out/config.json").read_text()).items() >= SWITCHES[1].items()
