"""`inspect`, `eval`, `finetune` and `recipes` on real checkpoints, and what a run of several processes gives."""

from __future__ import annotations

import json
import math
import signal
import socket
import sys
import time
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel, ViTForImageClassification

from any_width import drawn
from forked import command, started
from otfuse.testing.small import image_classifier
from otfuse.train.progress import Progress
from tiny import SIZES, listing, save

SPACE = ["id", "name", "kind", "size", "copies", "group", "pinned", "members", "exact"]


def test_inspect_proves_draws_and_prints_the_contract(otfuse, models, tmp_path):
    ran = otfuse("inspect", models / "t50", "--verify", "--svg", tmp_path / "t5.svg", "--json")
    answer = json.loads(ran.out)
    assert list(answer) == ["parameters", "spaces", "verify"]
    assert answer["parameters"] == sum(t.numel() for t in load_file(models / "t50" / "model.safetensors").values())
    assert all(list(space) == SPACE for space in answer["spaces"])
    assert {tuple(m) for space in answer["spaces"] for m in space["members"]} == {("tensor", "axis", "role")}
    assert sum(space["kind"] == "stream" for space in answer["spaces"]) == 1
    assert answer["verify"]["error"] < 1e-8 < answer["verify"]["control"]
    assert ET.parse(tmp_path / "t5.svg").getroot().tag.endswith("svg")
    table = otfuse("inspect", models / "vit0", "--quiet")
    assert (table.status, table.err) == (0, "")
    assert "vit.layers.{0..1}.mlp.fc1" in table.out
    assert "Proved" not in table.out


def test_eval_of_a_classifier_and_its_ensemble(otfuse, models, data):
    names = [str(models / f"vit{i}") for i in range(2)]
    rows = json.loads(otfuse("eval", *names, "--data", data / "labelled.npz", "--ensemble", "--json").out)["models"]
    assert [row["model"] for row in rows] == [*names, "ensemble"]
    with np.load(data / "labelled.npz") as archive:
        arrays = dict(archive)
    with torch.no_grad():
        logits = [
            ViTForImageClassification.from_pretrained(name)(torch.from_numpy(arrays["pixel_values"])).logits
            for name in names
        ]
    mean = torch.stack([part.softmax(1) for part in logits]).mean(0).log()
    for row, found in zip(rows, [*logits, mean], strict=True):
        assert list(row) == ["model", "examples", "loss", "accuracy"]
        labels = torch.from_numpy(arrays["labels"])
        assert row["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(found, labels)), rel=1e-5)
        assert row["accuracy"] == int((found.argmax(1) == labels).sum()) / 10


@pytest.mark.parametrize("file", ["text.txt", "ids.npz"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_eval_of_language_models(otfuse, models, data, kind, file):
    models = [models / f"{kind}{i}" for i in range(2)]
    rows = json.loads(otfuse("eval", *models, "--data", data / file, "--ensemble", "--json").out)["models"]
    assert [list(row) for row in rows] == [["model", "examples", "loss", "perplexity"]] * 3
    assert all(row["perplexity"] == pytest.approx(math.exp(row["loss"])) for row in rows)
    if kind == "gpt2" and file == "ids.npz":
        with np.load(data / file) as archive:
            ids = torch.from_numpy(archive["input_ids"])
        with torch.no_grad():
            loss = GPT2LMHeadModel.from_pretrained(models[0])(ids, labels=ids).loss
        assert rows[0]["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_eval_of_a_sequence_to_sequence_model_as_a_table(otfuse, models, data):
    ran = otfuse("eval", models / "t50", "--data", data / "pairs.npz")
    assert ran.status == 0
    assert "perplexity" in ran.out
    assert ran.err == "otfuse: load\notfuse: evaluate\n"


def test_recipes(otfuse):
    assert otfuse("recipes").out.split() == [
        "aligned", "aligned-acts", "auto", "calibrated", "distilled", "otfusion-acts", "otfusion-emd", "otfusion-wts", "refined", "vanilla",
    ]  # fmt: skip
    assert yaml.safe_load(otfuse("recipes", "otfusion-emd").out)["otfusion"]["solver"] == "emd"


TRAIN = ("--learning-rate", "0.01", "--batch-size", "4", "--seed", "3", "--device", "cpu")


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_finetune_learns_and_writes_a_whole_checkpoint(otfuse, models, data, tmp_path):
    model, out = models / "gpt20", tmp_path / "tuned"
    ran = otfuse("finetune", model, "--data", data / "text.txt", "--out", out, "--epochs", "4", *TRAIN, "--json")
    assert json.loads(ran.out)["steps"] == 4 * math.ceil(json.loads(ran.out)["examples"] / 4)
    assert set(listing(out)) >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert listing(tmp_path) == ["tuned", *(f"tuned/{name}" for name in listing(out))]
    rows = json.loads(otfuse("eval", model, out, "--data", data / "text.txt", "--json").out)["models"]
    assert rows[1]["loss"] < rows[0]["loss"] - 0.5


def test_a_killed_finetune_goes_on_to_the_same_weights_bit_for_bit(otfuse, models, data, tmp_path):
    options = ("--data", data / "labelled.npz", *TRAIN, "--steps", "120", "--save-every", "5", "--quiet")
    state = tmp_path / ".cut.progress" / "state.pt"
    process, said = started(command, "finetune", *map(str, (models / "vit0", "--out", tmp_path / "cut", *options)))
    with said:
        while not state.exists() and process.is_alive():
            time.sleep(0.01)
        process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == [".cut.progress"]
    done = torch.load(state, weights_only=True)["step"]
    assert 0 < done < 120
    assert otfuse("finetune", models / "vit0", "--out", tmp_path / "cut", *options).status == 0
    assert otfuse("finetune", models / "vit0", "--out", tmp_path / "whole", *options).status == 0
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut", "whole"]


def test_a_finetune_killed_after_its_result_was_written_is_finished_by_the_same_command(
    otfuse, models, data, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    command = ("finetune", models / "vit0", "--data", data / "labelled.npz", "--out", out, *TRAIN, "--steps", "2", "-q")

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "remove", killed)
        assert otfuse(*command).status == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.progress", "out"]
    before = weights(out)
    stranger = otfuse(*(*command[:-1], "--learning-rate", "0.02"))
    assert (stranger.status, "learning_rate" in stranger.err) == (1, True)
    assert otfuse(*command).status == 0
    assert same(weights(out), before)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert "not empty" in otfuse(*command).err


def test_two_processes_finetune_as_one(otfuse, shell, models, data, tmp_path):
    options = ("--data", data / "labelled.npz", "--learning-rate", "0.01", "--batch-size", "4", "--steps", "6")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
    launch += ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port)
    given = ("finetune", models / "vit0", "--out", tmp_path / "two", *options, "--json")
    ran = shell(*given, command=(*launch, "-m", "otfuse.cli"))
    assert ran.status == 0, ran.err
    assert json.loads(ran.out)["steps"] == 6
    assert otfuse("finetune", models / "vit0", "--out", tmp_path / "one", *options, "--device", "cpu").status == 0
    one, two, start = weights(tmp_path / "one"), weights(tmp_path / "two"), weights(models / "vit0")
    moved = max(float((one[name] - start[name]).abs().max()) for name in one)
    assert moved > 0.01
    far = {n for n, tensor in one.items() if float((two[n] - tensor).abs().max()) > 1e-3 * moved}
    # A bias of all keys shifts every score of a query alike: its gradient is rounding, which AdamW scales up.
    assert far <= {name for name in one if name.endswith("key.bias")}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


def test_regression_on_the_command_line(otfuse, models, tmp_path):
    """Numbers without a word in the config but that there is one of them: fused, evaluated, trained, drawn."""
    chance, pair = np.random.default_rng(0), [tmp_path / f"m{i}" for i in (0, 1)]
    for seed, folder in enumerate(pair):
        save(drawn(image_classifier(image_size=8, patch=4, labels=1, **SIZES), seed, spread=0.2), folder)
    images, data = chance.normal(size=(10, 1, 8, 8)).astype(np.float32), tmp_path / "data.npz"
    np.savez(data, pixel_values=images, labels=chance.normal(size=10))
    scores = json.loads(otfuse("eval", *pair, "--ensemble", "--data", data, "--json").out)["models"]
    assert [set(row) for row in scores] == [{"model", "examples", "loss"}] * 3
    logits = ViTForImageClassification.from_pretrained(pair[0])(torch.from_numpy(images)).logits.detach().double()
    wanted = (logits[:, 0].numpy() - np.load(data)["labels"]) ** 2
    assert scores[0]["loss"] == pytest.approx(wanted.mean(), rel=1e-5)
    table = otfuse("eval", pair[0], "--data", data)
    assert "squared error" in table.out
    assert "accuracy" not in table.out
    trained = otfuse(
        "finetune", pair[0], "--data", data, "--out", tmp_path / "tuned", "--steps", "20", "--batch-size", "5"
    )
    assert trained.status == 0, trained.err
    tuned = json.loads(otfuse("eval", tmp_path / "tuned", "--data", data, "--json").out)["models"][0]
    assert tuned["loss"] < scores[0]["loss"]
    line = otfuse("barrier", *pair, "--data", data, "--recipe", "vanilla", "--points", "3", "--out", tmp_path / "line")
    assert (line.status, "squared error" in line.out) == (0, True), line.err
    assert ET.parse(tmp_path / "line" / "figure.svg").getroot().tag.endswith("svg")
