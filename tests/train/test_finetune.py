from __future__ import annotations

import copy
import math
import resource
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import small_run as small
from forked import statuses
from otfuse.core.dataset import Dataset
from otfuse.errors import DataError, DeviceError, OtfuseError, OutputError, UsageError
from otfuse.evaluate.metrics import evaluate
from otfuse.train.finetune import batch_rows, finetune
from otfuse.train.options import FinetuneOptions
from otfuse.train.worker import _groups


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one if isinstance(one[k], torch.Tensor))


def test_a_killed_run_goes_on_to_the_same_weights_bit_for_bit(tmp_path):
    model, data = small.parts(dropout=0.3)
    whole = finetune(model, data, options=small.options()).model.state_dict()
    for kill, number in (("step", 5), ("save", 3)):
        out, weights = tmp_path / kill, tmp_path / f"{kill}.pt"
        assert statuses(small.main, out, weights, kill, number) == [-signal.SIGKILL]
        assert not weights.exists()
        assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [f".{kill}.progress"]
        report = finetune(model, data, options=small.options(), out=out)
        assert report.resumed_from == 4  # a save every 2: at step 5 the fourth was whole; the third save (6) never was
        same(report.model.state_dict(), whole)
        report.finish()
        assert list(tmp_path.iterdir()) == []


def test_two_processes_train_as_one(tmp_path):
    assert statuses(small.main, tmp_path / "out", tmp_path / "two.pt", processes=2) == [0, 0]
    two = torch.load(tmp_path / "two.pt")
    assert two.pop("processes") == 2
    model, data = small.parts(dropout=0.0)
    one = finetune(model, data, options=small.options()).model.state_dict()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0)
    assert (one["head.weight"] - model.head.weight).abs().max() > 0.05, "weights that hardly moved prove nothing"


def test_a_finished_run_is_kept_until_its_result_is_written(tmp_path):
    model, data = small.parts(dropout=0.3)
    first = finetune(model, data, options=small.options(), out=tmp_path / "out")
    again = finetune(model, data, options=small.options(save_every=5), out=tmp_path / "out")
    assert (again.resumed_from, again.loss) == (9, None)
    same(again.model.state_dict(), first.model.state_dict())
    again.finish()
    assert list(tmp_path.iterdir()) == []


def test_progress_of_another_run_is_refused_by_name(tmp_path):
    model, data = small.parts(dropout=0.0)
    finetune(model, data, options=small.options(steps=2, epochs=None), out=tmp_path / "out")
    other = copy.deepcopy(model)
    other.head.weight.data[0, 0] += 1
    less = data.take(slice(0, 20))
    for args, options, what in (
        ((model, data), small.options(steps=3, epochs=None), "steps"),
        ((other, data), small.options(steps=2, epochs=None), "weights"),
        ((model, less), small.options(steps=2, epochs=None, seed=9), "data, seed"),
    ):
        with pytest.raises(OtfuseError, match=rf"another run \({what} differ\); delete the folder or pass --restart"):
            finetune(*args, options=options, out=tmp_path / "out")
    anew = finetune(model, data, options=small.options(steps=3, epochs=None), out=tmp_path / "out", restart=True)
    assert anew.resumed_from == 0


def test_damaged_progress_is_refused(tmp_path):
    model, data = small.parts(dropout=0.0)
    finetune(model, data, options=small.options(steps=1, epochs=None), out=tmp_path / "out")
    state = tmp_path / ".out.progress" / "state.pt"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(OtfuseError, match="cannot be read; delete the folder or pass --restart"):
        finetune(model, data, options=small.options(steps=1, epochs=None), out=tmp_path / "out")


def test_progress_that_cannot_be_written_is_one_sentence(tmp_path):
    model, data = small.parts(dropout=0.0)
    (tmp_path / ".out.progress").write_text("a file where the folder should be")
    with pytest.raises(
        OutputError, match=r"progress cannot be written to .*; free space there or choose another place"
    ):
        finetune(model, data, options=small.options(), out=tmp_path / "out")


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    model, data = small.parts(dropout=0.0)
    finetune(model, data, options=small.options(save_every=4), out=tmp_path / "whole")
    size = (tmp_path / ".whole.progress" / "state.pt").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before := resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        with pytest.raises(OutputError, match=r"\.progress: the disk is full \(File too large\); free space"):
            finetune(model, data, options=small.options(), out=tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, before))
    assert [p.name for p in tmp_path.iterdir()] == [".whole.progress"]


def test_an_interruption_leaves_a_folder_only_once_something_was_saved(tmp_path):
    model, data = small.parts(dropout=0.0)
    for stop_at, left in ((1, []), (3, [".out.progress"])):

        def interrupt(step, *_, stop_at=stop_at):
            if step == stop_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            finetune(model, data, options=small.options(), out=tmp_path / "out", on_step=interrupt)
        assert [p.name for p in tmp_path.iterdir()] == left
    assert finetune(model, data, options=small.options(), out=tmp_path / "out").resumed_from == 2


def test_training_learns_and_leaves_the_model_and_all_chance_as_they_were():
    model, data = small.parts(dropout=0.3)
    model.norm.eval()
    before, chance = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    seen = []
    report = finetune(model, data, options=small.options(epochs=20), validation=data, on_step=lambda *a: seen.append(a))
    same(model.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(p.grad is None for p in model.parameters())
    assert [m.training for m in report.model.modules()] == [m.training for m in model.modules()]
    assert report.validation == evaluate(report.model, data)
    assert report.validation.accuracy > 0.9 > 0.5 > evaluate(model, data).accuracy
    assert [(step, steps) for step, steps, _ in seen] == [(i + 1, 60) for i in range(60)]
    assert report.loss == seen[-1][2] < seen[0][2]
    assert "forward" not in vars(report.model)
    assert torch.equal(report.model.unused, model.unused)


def test_the_seed_decides_order_and_dropout():
    model, data = small.parts(dropout=0.3)
    one, again, other = (finetune(model, data, options=small.options(seed=s)).model.state_dict() for s in (1, 1, 2))
    same(one, again)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_an_epoch_meets_every_example_once():
    options = small.options()
    for epoch in range(2):
        batches = [batch_rows(epoch * 3 + i, 21, options) for i in range(3)]
        assert [len(rows) for rows, _ in batches] == [8, 8, 5]
        assert sorted(np.concatenate([rows for rows, _ in batches])) == list(range(21))
        assert {e for _, e in batches} == {epoch}
    assert (batch_rows(0, 21, options)[0] != batch_rows(3, 21, options)[0]).any()


def test_one_update_is_that_of_torch():
    model, data = small.parts(dropout=0.0)
    settings = {"steps": 1, "epochs": None, "batch_size": 21, "warmup": 0.0, "max_grad_norm": 0.1, "weight_decay": 0.5}
    trained = finetune(model, data, options=small.options(**settings)).model
    own = copy.deepcopy(model)
    matrices = [own.table.weight, own.head.weight]
    vectors = [own.norm.weight, own.norm.bias, own.head.bias]
    groups = [{"params": matrices, "weight_decay": 0.5}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.03)
    logits, labels = own(torch.from_numpy(data.inputs["input_ids"])), torch.from_numpy(data.labels)
    nn.functional.cross_entropy(logits.transpose(1, 2), labels, label_smoothing=0.1).backward()
    assert nn.utils.clip_grad_norm_([*matrices, *vectors], 0.1) > 0.1
    optimizer.step()
    for name, tensor in own.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], tensor, atol=1e-5, rtol=0)


def test_only_matrices_decay():
    model, _ = small.parts(dropout=0.0)
    decayed, kept = _groups(model, 0.3)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in kept["params"]} == {1}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_learning_rate_rises_to_its_peak_and_falls_to_zero():
    options = small.options(learning_rate=2.0, warmup=0.2)
    rates = [options.learning_rate_at(step, 10) for step in range(11)]
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[6] == pytest.approx(2.0 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[10] == pytest.approx(0.0, abs=1e-12)


def test_half_precision_weights_learn_in_single_and_stay_half():
    model, data = small.parts(dropout=0.0)
    trained = finetune(model.bfloat16(), data, options=small.options(learning_rate=1e-4, epochs=10)).model
    assert {p.dtype for p in trained.parameters()} == {torch.bfloat16}
    assert not torch.equal(trained.table.weight, model.table.weight)


def test_mixed_precision_follows_single_precision_roughly():
    model, data = small.parts(dropout=0.0)
    single = finetune(model, data, options=small.options()).model
    mixed = finetune(model, data, options=small.options(mixed_precision="bf16")).model
    gap = (single.head.weight - mixed.head.weight).abs().max()
    assert 0 < gap < 0.1
    assert mixed.head.weight.dtype == torch.float32
    assert mixed(torch.zeros(1, 1, dtype=torch.int64)).dtype == torch.float32
    with pytest.raises(DeviceError, match="mixed precision 'fp16' does not work on cpu"):
        finetune(model, data, options=small.options(mixed_precision="fp16"))
    finetune(model, data, options=small.options(steps=1, epochs=None))


def test_a_language_model_learns_from_tokens_alone():
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=7, n_positions=8, bos_token_id=1, eos_token_id=2)
    model = GPT2LMHeadModel(config)
    _, data = small.parts(dropout=0.0)
    tokens = np.arange(48).reshape(8, 6) % 7
    data = Dataset({"input_ids": tokens, "attention_mask": np.ones_like(tokens)})
    options = small.options(epochs=30, max_grad_norm=None)
    report = finetune(model, data, options=options, validation=data)
    assert report.validation.perplexity < 0.7 * evaluate(model, data).perplexity
    assert report.model.lm_head.weight is report.model.transformer.wte.weight


def test_regression_learns_numbers_by_their_squared_error():
    model, chance = nn.Linear(4, 2), np.random.default_rng(0)
    model.config = SimpleNamespace(problem_type="regression")
    x = chance.normal(size=(40, 4)).astype(np.float32)
    data = Dataset({"input": x}, x[:, :2] - x[:, 2:])
    options = small.options(epochs=30, label_smoothing=0.0, max_grad_norm=None)
    report = finetune(model, data, options=options, validation=data)
    assert report.validation.loss < 0.05 * evaluate(model, data).loss
    assert report.validation.accuracy is report.validation.perplexity is None
    with pytest.raises(UsageError, match=r"label_smoothing 0.1: the model predicts numbers, not classes; leave it out"):
        finetune(model, data, options=small.options())


def test_a_loss_that_is_not_finite_stops_and_leaves_nothing(tmp_path):
    model, data = small.parts(dropout=0.0)
    model.head.weight.data[0, 0] = torch.inf
    with pytest.raises(OtfuseError, match="loss is not finite at step 1; lower the learning rate or check the data"):
        finetune(model, data, options=small.options(), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_bad_data_stop_before_anything_is_written(tmp_path):
    model, data = small.parts(dropout=0.0)
    wrong = Dataset(data.inputs, np.where(data.labels == 3, 99, data.labels))
    for given, validation in ((wrong, None), (data, wrong)):
        with pytest.raises(DataError, match="labels reach from 0 to 99, but the model has 7 classes"):
            finetune(model, given, options=small.options(), out=tmp_path / "out", validation=validation)
    frozen = copy.deepcopy(model).requires_grad_(requires_grad=False)
    with pytest.raises(OtfuseError, match="no parameter to train"):
        finetune(frozen, data, options=small.options(), out=tmp_path / "out")
    with pytest.raises(DeviceError, match="device 'tpu9' does not exist"):
        finetune(model, data, options=small.options(device="tpu9"), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"epochs": 0}, "finetuning option epochs cannot be 0: input should be greater than 0"),
        ({"learning_rate": -1.0}, "finetuning option learning_rate cannot be -1.0: input should be greater than 0"),
        ({"learning_rate": math.nan}, "finetuning option learning_rate cannot be nan"),
        ({"warmup": 1.0}, "finetuning option warmup cannot be 1.0: input should be less than 1"),
        (
            {"mixed_precision": "fp8"},
            "finetuning option mixed_precision cannot be 'fp8': input should be 'no', 'bf16' or 'fp16'",
        ),
        ({"epochs": 1, "steps": 1}, "finetuning: epochs and steps are both given; give one of them"),
        ({"epoch": 1}, "finetuning has no option 'epoch'; allowed: epochs, steps, batch_size"),
    ],
)
def test_bad_options_are_one_sentence(given, sentence):
    with pytest.raises(UsageError) as caught:
        FinetuneOptions(**given)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_length_is_three_epochs_unless_given():
    assert FinetuneOptions(batch_size=8).total_steps(17) == 9
    assert FinetuneOptions(batch_size=8, epochs=2).total_steps(17) == 6
    assert FinetuneOptions(batch_size=8, steps=5).total_steps(17) == 5
