"""What lies beside the weights goes with the result, by exclusion; what is damaged is told before any work."""

import os
import re
from pathlib import Path

import pytest

from otfuse.errors import CheckpointError
from otfuse.io.checkpoint import open_checkpoint
from otfuse.io.companions import companions, copy_companions

GOES = [
    "tokenizer.json", "spiece.model", "qwen.tiktoken", "merges.txt", "preprocessor_config.json", "chat_template.jinja", "LICENSE.md",
    "added_tokens.json", "labels.csv", "mel_filters.npz", "bpe_vocab.txt.gz", "figures/loss.png", "1_Pooling/config.json", "2_Dense/config.json",
    "additional_chat_templates/tools.jinja", "voices/de/card.yaml", "docs/README.md", "2_Normalize", ".gitattributes", "params.json",
]  # fmt: skip
STAYS = [
    "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "model.fp16.safetensors", "pytorch_model.bin",
    "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack", "model.Q4_K_M.gguf", "rust_model.ot", "consolidated.00.pth", "last.ckpt",
    "model.ckpt-100.data-00000-of-00001", "model.onnx_data", "onnx/model.onnx", "onnx/config.json", "openvino/openvino_model.xml", "coreml/x.json",
    "openvino_model.xml", "openvino_model.bin", "model.tflite", "weights.npz", "original/consolidated.00.pth", "2_Dense/model.safetensors",
    "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state_0.pth", "random_states_0.pkl", "trainer_state.json", "training_args.bin", "all_results.json",
    "events.out.tfevents.1.host.2.3", "runs/Nov/events.out.tfevents.1", "wandb/run/config.yaml", "train.log", "checkpoint-500/config.json",
    "global_step10/x.txt", "latest", ".cache/huggingface/a.json", ".git/HEAD", "__pycache__/a.pyc", "config.json", "README.md", "fusion.json",
    "adapter_config.json", "adapters/fr/adapter_config.json", "adapters/fr/card.txt", "unnamed.py", ".DS_Store",
]  # fmt: skip


def lay(folder, names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if "." in path.name or path.name in ("latest", "HEAD"):
            path.write_text("{}")
        else:
            path.mkdir()


def names(folder):
    """Files, and folders that hold nothing."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() or not any(p.iterdir()))


def test_all_but_weights_and_traces_of_a_training_goes_along(tmp_path):
    lay(tmp_path / "anchor", GOES + STAYS)
    (tmp_path / "out").mkdir()
    copy_companions(tmp_path / "anchor", tmp_path / "out")
    assert [n for n in names(tmp_path / "out") if n not in ("original", "adapters", "voices")] == sorted(GOES)


def test_links_give_the_files_and_lead_to_no_folder(tmp_path):
    lay(tmp_path, ["blobs/1a.json", "anchor/1_Pooling/keep.txt"])
    (tmp_path / "anchor/tokenizer.json").symlink_to("../blobs/1a.json")
    (tmp_path / "anchor/1_Pooling/config.json").symlink_to("../../blobs/1a.json")
    (tmp_path / "anchor/again").symlink_to(tmp_path / "anchor")
    (tmp_path / "out").mkdir()
    copy_companions(tmp_path / "anchor", tmp_path / "out")
    assert names(tmp_path / "out") == ["1_Pooling/config.json", "1_Pooling/keep.txt", "tokenizer.json"]
    assert not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))


def test_an_output_inside_the_anchor_is_not_copied_into_itself(tmp_path):
    lay(tmp_path, ["a.txt", "deep/out/earlier.txt"])
    copy_companions(tmp_path, tmp_path / "deep/out")
    assert names(tmp_path / "deep/out") == ["a.txt", "earlier.txt"]


def test_code_goes_along_if_config_or_settings_name_it(tmp_path):
    lay(tmp_path / "anchor", ["other.py"])
    code = {"modeling.py": "from .parts import x\n", "parts.py": "", "tok.py": ""}
    settings = {
        "config.json": '{"auto_map": {"AutoModel": "modeling.M"}}',
        "tokenizer_config.json": '{"auto_map": {"A": ["tok.T", null]}}',
    }
    for name, text in (code | settings).items():
        (tmp_path / "anchor" / name).write_text(text)
    (tmp_path / "out").mkdir()
    copy_companions(tmp_path / "anchor", tmp_path / "out")
    assert names(tmp_path / "out") == sorted([*code, "tokenizer_config.json"])


def refused(folder, sentence):
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'checkpoint {folder}: {sentence}')}$"):
        open_checkpoint(folder)


def test_damaged_companions_are_told_before_any_work(bert_folder, barred, open_place):
    (bert_folder / "tokenizer.model").symlink_to("../../blobs/gone")
    refused(bert_folder, "tokenizer.model is a link to a file that is not there; download it again")
    (bert_folder / "tokenizer.model").unlink()
    (bert_folder / "optimizer.pt").symlink_to("gone")  # it is not needed
    open_checkpoint(bert_folder)
    (bert_folder / "spiece.model").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n")
    refused(bert_folder, "spiece.model is a pointer of Git LFS and not the file itself; run `git lfs pull` there")


def test_companions_that_may_not_be_read_are_told_before_any_work(build, open_place, barred):
    folder = open_place / "anchor"
    build("vit").save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    lay(folder, ["sub/notes.txt"])
    with barred(folder / "sub/notes.txt"):
        refused(folder, "sub/notes.txt cannot be read (Permission denied); check its permissions")
    with barred(folder / "sub"):
        refused(folder, "its folder sub cannot be read (Permission denied); check its permissions")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files there")
def test_what_is_no_file_is_left_aside(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert list(companions(Path(tmp_path))) == []


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_settings_that_are_no_object_are_refused(bert_folder, name):
    (bert_folder / name).write_text("[1, 2]")
    with pytest.raises(CheckpointError, match=rf"{name} must hold a JSON object, not a list"):
        open_checkpoint(bert_folder)
