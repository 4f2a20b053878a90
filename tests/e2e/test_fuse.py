"""`otfuse fuse` from folders to a folder: a plain checkpoint of the anchor's class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tiny import LENGTH, build, listing, save

CLASSES = {
    "bert": "BertForMaskedLM",
    "gpt2": "GPT2LMHeadModel",
    "vit": "ViTForImageClassification",
    "t5": "T5ForConditionalGeneration",
    "llama": "LlamaForCausalLM",
}
WEIGHTS = ("otfusion-wts", "--quiet")


def stored(folder):
    """Name, type and shape of every tensor by file, and the metadata of the files."""
    found, metadata = {}, set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            metadata.add(tuple(file.metadata().items()))
            for name in file.keys():  # noqa: SIM118
                part = file.get_tensor(name)
                found[path.name, name] = (part.dtype, tuple(part.shape))
    return found, metadata


def reload(folder, kind):
    model, info = getattr(transformers, CLASSES[kind]).from_pretrained(folder, output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    return model


@pytest.mark.parametrize("kind", CLASSES)
def test_the_output_is_a_plain_checkpoint_of_the_anchor(otfuse, models, tmp_path, kind):
    anchor, source, out = models / f"{kind}0", models / f"{kind}1", tmp_path / "fused"
    ran = otfuse("fuse", anchor, source, "--out", out, "--quiet")
    assert (ran.status, ran.err) == (0, f"otfuse: wrote {out}\n")
    assert stored(out) == stored(anchor)
    assert dict(*stored(out)[1]) == {"format": "pt"}
    assert {p for p in listing(anchor) if p not in listing(out)} == set()
    assert set(listing(out)) - set(listing(anchor)) == {"README.md", "fusion.json"}
    for name in set(listing(anchor)) - {"model.safetensors", "config.json"}:
        assert (out / name).read_bytes() == (anchor / name).read_bytes()
    assert json.loads((out / "config.json").read_text()) == json.loads((anchor / "config.json").read_text())
    model, parent = reload(out, kind), reload(anchor, kind)
    tied = {id(p) for p in parent.parameters()}
    assert len({id(p) for p in model.parameters()}) == len(tied)
    parts = load_file(out / "model.safetensors"), load_file(anchor / "model.safetensors")
    assert any(not torch.equal(t, parts[1][name]) for name, t in parts[0].items())
    assert listing(tmp_path) == ["fused", *(f"fused/{name}" for name in listing(out))]


def test_the_processor_and_tokenizer_load_from_the_output(otfuse, models, tmp_path):
    for kind in ("vit", "bert"):
        otfuse("fuse", models / f"{kind}0", models / f"{kind}1", "--out", tmp_path / kind, "--recipe", "vanilla")
    assert transformers.AutoImageProcessor.from_pretrained(tmp_path / "vit").size["height"] == 8
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "bert").decode([5, 6])


CODE = """
from transformers import PreTrainedTokenizer

from .help_spelling import number


class Spelling(PreTrainedTokenizer):
    vocab_files_names = {}

    @property
    def vocab_size(self):
        return 26

    def get_vocab(self):
        return {chr(97 + i): i for i in range(26)}

    def _tokenize(self, text):
        return [c for c in text if c.isalpha()]

    def _convert_token_to_id(self, token):
        return number(token)
"""


def test_a_tokenizer_made_of_code_goes_with_the_result_and_runs_only_if_trusted(
    otfuse, models, data, tmp_path, code_cache
):
    anchor, out = Path(shutil.copytree(models / "gpt20", tmp_path / "anchor")), tmp_path / "out"
    (anchor / "tokenizer.json").unlink()
    settings = {"tokenizer_class": "Spelling", "auto_map": {"AutoTokenizer": ["spelling.Spelling", None]}}
    (anchor / "tokenizer_config.json").write_text(json.dumps(settings))
    (anchor / "spelling.py").write_text(CODE)
    (anchor / "help_spelling.py").write_text("def number(token):\n    return ord(token) - 97\n")
    (anchor / "train.py").write_text("raise SystemExit")
    assert otfuse("fuse", anchor, models / "gpt21", "--out", out).status == 0
    assert {p.name for p in out.glob("*.py")} == {"spelling.py", "help_spelling.py"}
    asked = ["eval", out, "--data", data / "text.txt", "--json"]
    ran = otfuse(*asked)
    assert ran.status == 1
    assert "is code that comes with the checkpoint (auto_map); read that code, then pass --trust-remote-code" in ran.err
    assert not code_cache.exists(), "nothing of it ran"
    ran = otfuse(*asked, "--trust-remote-code")
    letters = sum(c.isalpha() for c in (data / "text.txt").read_text())
    assert (ran.status, json.loads(ran.out)["models"][0]["examples"]) == (0, letters // LENGTH), ran.err
    assert list(code_cache.rglob("help_spelling.py")), "this test's own code ran, and no other"


def test_the_card_and_fusion_json_tell_what_was_done(otfuse, models, data, tmp_path):
    anchor, source, out = models / "vit0", models / "vit1", tmp_path / "fused"
    ran = otfuse("fuse", anchor, source, "--out", out, "--recipe", "otfusion-acts", "--data", data / "images.npz",
                 "--set", "otfusion.regulariser=auto", "--json")  # fmt: skip
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front == {
        "base_model": ["vit0", "vit1"],
        "library_name": "transformers",
        "base_model_relation": "merge",
        "tags": ["merge", "otfuse"],
    }
    told = json.loads((out / "fusion.json").read_text())
    assert {"versions", "recipe", "stages", "solved", "sources", "gate", "notes"} <= told.keys()
    chosen = told["recipe"]["otfusion"]["regulariser"]
    assert isinstance(chosen, float)
    assert f"regulariser: {chosen}" in card
    assert told["notes"][0].startswith(f"regulariser {chosen:g} chosen by divergence")
    assert [s["name"] for s in told["stages"]] == [
        "load", "trace", "verify", "measure", "align", "average", "write",
    ]  # fmt: skip
    assert all(s["seconds"] >= 0 and s["peak_mib"] > 0 for s in told["stages"])
    assert [s["hash"] for s in told["sources"]] != ["", ""]
    assert {"name", "method", "before", "after", "converged"} <= told["solved"][0].keys()
    printed = json.loads(ran.out)
    assert printed["out"] == str(out)
    assert [s["name"] for s in printed["stages"]] == [s["name"] for s in told["stages"]]
    assert told["weights"] == [0.5, 0.5]
    assert "Mixed with the weights 0.5, 0.5, anchor first." in card
    assert {k: v for k, v in printed.items() if k not in ("out", "stages")} == {
        k: v for k, v in told.items() if k not in ("versions", "stages")
    }


@pytest.mark.parametrize("option", ["separate", "heads"])
def test_what_was_solved_is_told_by_space(otfuse, models, tmp_path, option):
    anchor, source, out = models / "gpt20", models / "gpt21", tmp_path / "fused"
    assert (
        otfuse(
            "fuse", anchor, source, "--out", out, "--recipe", "otfusion-wts", "--set", f"otfusion.query_key={option}"
        ).status
        == 0
    )
    solved = json.loads((out / "fusion.json").read_text())["solved"]
    spaces = {s["id"]: s for s in json.loads(otfuse("inspect", anchor, "--json").out)["spaces"]}
    kinds = {problem["name"]: {spaces[i]["kind"] for i in problem["spaces"]} for problem in solved}
    assert all(kinds.values()), kinds
    assert kinds["transformer.wte"] == {"stream"}
    assert len(kinds["transformer.h.0.mlp.c_fc"]) == 1
    assert kinds["transformer.h.0.mlp.c_fc"] != {"stream"}
    assert (["heads"] in [list(kind) for kind in kinds.values()]) == (option == "heads")


def test_a_dry_run_plans_and_writes_nothing(otfuse, models, tmp_path):
    before = listing(models)
    ran = otfuse("fuse", models / "llama0", models / "llama1", "--out", tmp_path / "x", "--dry-run", "--json")
    plan = json.loads(ran.out)
    assert (ran.status, plan["out"], plan["memory_mib"] > 0) == (0, None, True)
    assert {"name": "stream", "kind": "stream", "anchor": 16, "source": 16} in [
        {k: v for k, v in space.items() if k != "id"} for space in plan["spaces"]
    ]
    assert {"name", "anchor", "source", "method"} == plan["problems"][0].keys()
    assert (listing(models), listing(tmp_path)) == (before, [])


def test_dtype_and_shards_are_those_asked_for(otfuse, models, tmp_path):
    anchor, source, out = models / "bert0", models / "bert1", tmp_path / "fused"
    ran = otfuse("fuse", anchor, source, "--out", out, "--dtype", "float16", "--out-shard-size", "4KB", "-q")
    assert ran.status == 0
    transformers.BertForMaskedLM.from_pretrained(anchor, dtype=torch.float16).save_pretrained(
        tmp_path / "own", max_shard_size="4KB"
    )
    assert stored(out) == stored(tmp_path / "own")
    index = [json.loads((p / "model.safetensors.index.json").read_text()) for p in (out, tmp_path / "own")]
    assert index[0] == index[1]
    assert reload(out, "bert").dtype == torch.float16


def test_half_precision_stays_and_shards_are_read(otfuse, tmp_path):
    for seed in (0, 1):
        build("llama", seed).to(torch.bfloat16).save_pretrained(tmp_path / f"m{seed}", max_shard_size="4KB")
    assert len(list((tmp_path / "m0").glob("*.safetensors"))) > 1
    ran = otfuse("fuse", tmp_path / "m0", tmp_path / "m1", "--out", tmp_path / "fused")
    assert ran.status == 0
    assert {dtype for dtype, _ in stored(tmp_path / "fused")[0].values()} == {torch.bfloat16}
    reload(tmp_path / "fused", "llama")


def mixed(folder, seed):
    """Weights in bfloat16, gains of the norms in float32, as some checkpoints come."""
    build("llama", seed).to(torch.bfloat16).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: t.float() * 1.001 if "norm" in name else t for name, t in tensors.items()}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("command", ["fuse", "finetune"])
def test_every_tensor_keeps_the_anchors_own_type(otfuse, data, tmp_path, command):
    anchor, source, out = mixed(tmp_path / "a", 0), mixed(tmp_path / "b", 1), tmp_path / "out"
    rest = [source] if command == "fuse" else ["--data", data / "ids.npz", "--steps", "2"]
    ran = otfuse(command, anchor, *rest, "--out", out)
    assert ran.status == 0, ran.err
    assert {dtype for dtype, _ in stored(out)[0].values()} == {torch.bfloat16, torch.float32}
    assert stored(out) == stored(anchor)
    assert json.loads((out / "config.json").read_text()) == json.loads((anchor / "config.json").read_text())
    reload(out, "llama")


@pytest.mark.parametrize(("kind", "file"), [("vit", "images.npz"), ("bert", "ids.npz"), ("t5", "pairs.npz")])
def test_double_precision_is_kept_and_computed_in(otfuse, models, data, tmp_path, kind, file):
    save(build(kind, 0).double(), tmp_path / "a")
    for recipe in (("otfusion-wts",), ("otfusion-acts", "--data", data / file), ("vanilla", "--set", "weights=[1, 0]")):
        ran = otfuse("fuse", tmp_path / "a", models / f"{kind}1", "--out", tmp_path / recipe[0], "--recipe", *recipe)
        assert ran.status == 0, ran.err
        assert stored(tmp_path / recipe[0]) == stored(tmp_path / "a")
    parts = [load_file(tmp_path / name / "model.safetensors") for name in ("a", "vanilla")]
    assert all(torch.equal(t, parts[1][name]) for name, t in parts[0].items()), "nothing went through float32"


def test_weights_of_three_models_are_those_of_the_recipe(otfuse, models, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("scheme: average\nweights: [0.5, 0.3, 0.2]\n")
    folders = [models / f"gpt2{i}" for i in range(3)]
    assert otfuse("fuse", *folders, "--out", tmp_path / "fused", "--recipe", recipe).status == 0
    parts = [load_file(folder / "model.safetensors") for folder in (*folders, tmp_path / "fused")]
    for name, fused in parts[3].items():
        wanted = 0.5 * parts[0][name] + 0.3 * parts[1][name] + 0.2 * parts[2][name]
        torch.testing.assert_close(fused, wanted, atol=1e-6, rtol=0)
    given = ["--recipe", "otfusion-wts", "--set", "weights=[1, 0, 0]", "--set", "otfusion.solver=emd"]
    ran = otfuse("fuse", *folders, "--out", tmp_path / "b", *given)
    assert ran.status == 0
    parts = [load_file(folder / "model.safetensors") for folder in (folders[0], tmp_path / "b")]
    for name, own in parts[0].items():
        torch.testing.assert_close(parts[1][name], own, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("anchor", "source"), [("narrow", "wide"), ("wide", "narrow")])
def test_unequal_widths(otfuse, data, tmp_path, anchor, source):
    sizes = {"narrow": {"hidden": 16, "mlp": 24}, "wide": {"hidden": 24, "heads": 3, "mlp": 40}}
    for name, size in sizes.items():
        save(build("vit", 1, **size), tmp_path / name)
    for recipe in ("otfusion-acts", "otfusion-wts"):
        out = tmp_path / recipe
        ran = otfuse(
            "fuse",
            tmp_path / anchor,
            tmp_path / source,
            "--out",
            out,
            "--recipe",
            recipe,
            "--data",
            data / "images.npz",
        )
        assert ran.status == 0, ran.err
        assert stored(out) == stored(tmp_path / anchor)
        reload(out, "vit")


def test_as_a_process_json_is_alone_on_stdout(shell, models, tmp_path):
    ran = shell("fuse", models / "vit0", models / "vit1", "--out", tmp_path / "fused", "--json")
    assert json.loads(ran.out)["out"] == str(tmp_path / "fused")
    assert ran.out.count("\n") == 1
    stages = ["load", "trace", "verify", "measure", "align", "average", "write"]
    assert ran.err.splitlines() == [f"otfuse: {stage}" for stage in stages]
    assert ran.status == 0


def test_pickled_weights_are_read_when_allowed(otfuse, models, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_bytes((models / "bert0" / "config.json").read_bytes())
    torch.save(build("bert", 0).state_dict(), folder / "pytorch_model.bin")
    ran = otfuse("fuse", folder, models / "bert1", "--out", tmp_path / "fused", "--allow-pickle")
    assert (ran.status, Path(tmp_path / "fused" / "model.safetensors").is_file()) == (0, True)
    again = otfuse("fuse", models / "bert0", models / "bert1", "--out", tmp_path / "again")
    assert again.status == 0
    parts = [load_file(tmp_path / name / "model.safetensors") for name in ("fused", "again")]
    assert all(np.array_equal(parts[0][name], parts[1][name]) for name in parts[1])
