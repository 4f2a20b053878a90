from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from otfuse.core.dataset import Dataset
from otfuse.errors import DataError, DeviceError, UsageError
from otfuse.evaluate.metrics import Asked, evaluate, evaluate_ensemble, evaluate_together
from otfuse.evaluate.run import logits_of
from otfuse.evaluate.task import IGNORE, Kind, derive

VOCAB, LENGTH, EXAMPLES = 23, 9, 11
TINY = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": VOCAB,
}
RNG = np.random.default_rng(3)
TOKENS = RNG.integers(5, VOCAB, (EXAMPLES, LENGTH))


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build().eval()


def causal(cls=GPT2LMHeadModel):
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=VOCAB, n_positions=16, bos_token_id=1, eos_token_id=2)
    return seeded(lambda: cls(config))


def masked():
    return seeded(lambda: BertForMaskedLM(BertConfig(**TINY, max_position_embeddings=16)))


def paired():
    config = T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=VOCAB, decoder_start_token_id=0)
    return seeded(lambda: T5ForConditionalGeneration(config))


def classifier(classes=4, width=6, seed=0):
    net = nn.Sequential(nn.Linear(width, classes))
    with torch.no_grad():
        net[0].weight.copy_(torch.randn(classes, width, generator=torch.Generator().manual_seed(seed)))
    return net


def points(labels=True, width=6):
    x = RNG.standard_normal((EXAMPLES, width)).astype(np.float32)
    return Dataset({"x": x}, RNG.integers(0, 4, EXAMPLES) if labels else None)


def padded():
    mask = np.ones((EXAMPLES, LENGTH), np.int64)
    for row in range(EXAMPLES):
        mask[row, LENGTH - row % 5 :] = 0
    return mask


def test_classification_is_mean_cross_entropy_and_share_of_right_answers():
    model, data = classifier(), points()
    logits = model(torch.from_numpy(data.inputs["x"]))
    labels = torch.from_numpy(data.labels)
    score = evaluate(model, data, batch_size=4)
    assert score.examples == EXAMPLES
    assert score.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), abs=1e-6)
    assert score.accuracy == (logits.argmax(1) == labels).double().mean().item()
    assert score.perplexity is None


def test_perfect_and_hopeless_models_score_one_and_zero():
    data = Dataset({"x": np.eye(3, dtype=np.float32)}, np.arange(3))
    model = nn.Linear(3, 3, bias=False)
    for sign, accuracy in ((50.0, 1.0), (-50.0, 0.0)):
        with torch.no_grad():
            model.weight.copy_(torch.eye(3) * sign)
        score = evaluate(model, data)
        assert score.accuracy == accuracy
        assert score.loss == pytest.approx(0.0 if sign > 0 else 50 + math.log(2), abs=1e-5)


@pytest.mark.parametrize("build", [causal, masked, paired, classifier], ids=lambda f: f.__name__)
def test_result_does_not_depend_on_the_batch_size(build):
    model = build()
    inputs = {"input_ids": TOKENS, "attention_mask": padded()}
    data = points() if build is classifier else Dataset(inputs, TOKENS if build is paired else None)
    options = {"mask_token_id": 4} if build is masked else {}
    whole = evaluate(model, data, batch_size=EXAMPLES, **options)
    for size in (1, 4, 7):
        part = evaluate(model, data, batch_size=size, **options)
        assert part.loss == pytest.approx(whole.loss, abs=1e-6)
        assert part.accuracy == whole.accuracy


def test_causal_loss_is_that_of_transformers_and_counts_no_padding():
    model, mask = causal(), padded()
    score = evaluate(model, Dataset({"input_ids": TOKENS, "attention_mask": mask}), batch_size=4)
    labels = torch.from_numpy(np.where(mask == 1, TOKENS, IGNORE))
    with torch.no_grad():
        expected = model(torch.from_numpy(TOKENS), attention_mask=torch.from_numpy(mask), labels=labels).loss.item()
    assert score.loss == pytest.approx(expected, abs=1e-6)
    assert score.perplexity == pytest.approx(math.exp(expected), rel=1e-6)
    assert score.accuracy is None
    assert evaluate(model, Dataset({"input_ids": TOKENS})).loss != pytest.approx(expected, abs=1e-4)


def test_what_padding_holds_changes_nothing():
    model, mask = causal(), padded()
    other = np.where(mask == 1, TOKENS, 7)
    scores = [evaluate(model, Dataset({"input_ids": t, "attention_mask": mask})).loss for t in (TOKENS, other)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_left_padding_predicts_from_real_tokens_only():
    model = causal()
    mask = np.ones_like(TOKENS)
    mask[:, :3] = 0
    task = derive(model, Dataset({"input_ids": TOKENS, "attention_mask": mask}))
    targets = task.batch(Dataset({"input_ids": TOKENS, "attention_mask": mask}), np.arange(2)).targets
    assert (targets[:, :3] == IGNORE).all()
    assert (targets[:, 3:-1] == TOKENS[:2, 4:]).all()


def test_labels_that_repeat_the_tokens_say_the_same_as_none():
    model = causal()
    alone, repeated = (evaluate(model, Dataset({"input_ids": TOKENS}, labels)) for labels in (None, TOKENS))
    assert alone == repeated


class NextToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCAB, VOCAB)

    def forward(self, tokens):
        return self.table(tokens), None


@pytest.mark.parametrize("labels", [None, TOKENS], ids=["none", "repeated"])
def test_plain_causal_model_with_a_tuple_output(labels):
    model = NextToken()
    score = evaluate(model, Dataset({"tokens": TOKENS}, labels), batch_size=3)
    logits = model.table(torch.from_numpy(TOKENS[:, :-1])).reshape(-1, VOCAB)
    expected = nn.functional.cross_entropy(logits, torch.from_numpy(TOKENS[:, 1:]).reshape(-1)).item()
    assert score.loss == pytest.approx(expected, abs=1e-6)
    assert score.perplexity is not None


def test_labels_per_position_are_classes_of_tokens():
    labels = np.where(padded() == 1, TOKENS % 3, IGNORE)
    model = seeded(lambda: BertForTokenClassification(BertConfig(**TINY, num_labels=3, max_position_embeddings=16)))
    score = evaluate(model, Dataset({"input_ids": TOKENS}, labels), batch_size=4)
    with torch.no_grad():
        out = model(torch.from_numpy(TOKENS), labels=torch.from_numpy(labels))
    assert score.loss == pytest.approx(out.loss.item(), abs=1e-6)
    assert 0 <= score.accuracy <= 1


def test_sequence_loss_is_that_of_transformers():
    model = paired()
    labels = np.where(padded() == 1, TOKENS, IGNORE)
    score = evaluate(model, Dataset({"input_ids": TOKENS}, labels), batch_size=4)
    with torch.no_grad():
        expected = model(torch.from_numpy(TOKENS), labels=torch.from_numpy(labels)).loss.item()
    assert score.loss == pytest.approx(expected, abs=1e-6)
    assert score.perplexity == pytest.approx(math.exp(expected), rel=1e-6)


def masks(model, tokens, mask=None, *, seed=0, epoch=0, rows=None, special=()):
    inputs = {"input_ids": tokens} | ({} if mask is None else {"attention_mask": mask})
    data = Dataset(inputs)
    task = derive(model, data, mask_token_id=4, special_ids=special, seed=seed)
    return task.batch(data, np.arange(len(tokens)) if rows is None else rows, epoch)


def test_masks_hide_fifteen_percent_of_what_may_be_hidden():
    tokens = np.random.default_rng(0).integers(1, 3, (50, 16)) * 5 + 1  # 6 and 11
    tokens[:, 0], tokens[:, 15] = 2, 3
    mask = np.ones_like(tokens)
    mask[:, 12:15] = 0
    batch = masks(masked(), tokens, mask, special=(2, 3))
    hidden = batch.targets != IGNORE
    assert (hidden.sum(1) == round(0.15 * 11)).all()
    assert not hidden[:, [0, 12, 13, 14, 15]].any()
    assert hidden[:, 1:12].any(0).all()
    assert (batch.inputs["input_ids"][hidden] == 4).all()
    assert (batch.targets[hidden] == tokens[hidden]).all()
    assert (batch.inputs["input_ids"][~hidden] == tokens[~hidden]).all()


def test_masks_depend_on_seed_epoch_and_example_only():
    model, rows = masked(), np.array([5, 2, 9])
    all_rows = masks(model, TOKENS).targets
    assert (masks(model, TOKENS, rows=rows).targets == all_rows[rows]).all()
    assert (masks(masked(), TOKENS).targets == all_rows).all()
    assert (masks(model, TOKENS, seed=1).targets != all_rows).any()
    assert (masks(model, TOKENS, epoch=1).targets != all_rows).any()


def test_masked_labels_are_used_as_they_are():
    model, labels = masked(), np.full_like(TOKENS, IGNORE)
    labels[:, 2] = TOKENS[:, 2]
    hidden = TOKENS.copy()
    hidden[:, 2] = 4
    score = evaluate(model, Dataset({"input_ids": hidden}, labels))
    with torch.no_grad():
        expected = model(torch.from_numpy(hidden), labels=torch.from_numpy(labels)).loss.item()
    assert score.loss == pytest.approx(expected, abs=1e-6)


def test_kinds_come_from_class_and_data():
    ids = {"input_ids": TOKENS}
    llama = seeded(lambda: LlamaForCausalLM(LlamaConfig(**TINY)))
    assert derive(llama, Dataset(ids)).kind is Kind.NEXT_TOKEN
    assert derive(causal(type("Mine", (GPT2LMHeadModel,), {})), Dataset(ids)).kind is Kind.NEXT_TOKEN
    assert derive(masked(), Dataset(ids), mask_token_id=4).kind is Kind.MASKED_TOKEN
    assert derive(paired(), Dataset(ids, TOKENS)).kind is Kind.SEQUENCE
    config = BertConfig(**TINY, num_labels=4, max_position_embeddings=16)
    data = Dataset(ids, np.arange(EXAMPLES) % 4)
    assert derive(seeded(lambda: BertForSequenceClassification(config)), data).kind is Kind.CLASSES


def test_images_of_any_precision():
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8)
    config.patch_size, config.num_channels, config.num_labels = 4, 1, 3
    model = seeded(lambda: ViTForImageClassification(config))
    images = RNG.standard_normal((5, 1, 8, 8))
    labels = np.arange(5) % 3
    double = evaluate(model, Dataset({"pixel_values": images}, labels.astype(np.uint8)))
    assert double == evaluate(model, Dataset({"pixel_values": images.astype(np.float32)}, labels))


def test_ensemble_averages_probabilities():
    models, data = [classifier(seed=s) for s in (0, 1, 2)], points()
    with torch.no_grad():
        mean = torch.stack([m(torch.from_numpy(data.inputs["x"])).softmax(1) for m in models]).mean(0)
    score = evaluate_ensemble(models, data, batch_size=3)
    labels = torch.from_numpy(data.labels)
    assert score.loss == pytest.approx(-mean[torch.arange(EXAMPLES), labels].log().mean().item(), abs=1e-6)
    assert score.accuracy == (mean.argmax(1) == labels).double().mean().item()
    losses = [evaluate(m, data).loss for m in models]
    assert score.loss < sum(losses) / 3  # Jensen; strict because the models differ
    assert evaluate_ensemble(models[:1], data) == evaluate(models[0], data)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5))
    model[0].eval()
    model[1].train()
    first = evaluate(model, points())
    assert (model.training, model[0].training, model[1].training) == (True, False, True)
    assert first.loss > 0
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_logits_are_found_in_every_kind_of_output():
    wanted = torch.zeros(2, 3)
    for output in (
        wanted,
        (wanted,),
        (torch.tensor(1.0), wanted),
        {"loss": torch.tensor(1.0), "logits": wanted},
        [None, wanted],
    ):
        assert logits_of(output) is wanted
    with pytest.raises(DataError, match="without logits"):
        logits_of((torch.tensor(1.0),))


class Two(nn.Module):
    def forward(self, left, right):
        return left - right


def refuse(model, data, pattern, error=DataError, **options):
    with pytest.raises(error, match=pattern) as caught:
        evaluate(model, data, **options)
    assert "\n" not in str(caught.value)


def test_bad_input_is_one_sentence():
    floats = np.zeros((2, 6), np.float32)
    refuse(
        classifier(), points(labels=False), r"no labels and Sequential needs them; add an integer array named 'labels'"
    )
    refuse(
        classifier(), Dataset({"x": floats}, np.array([0, 4])), r"labels reach from 0 to 4, but the model has 4 classes"
    )
    refuse(classifier(), Dataset({"x": floats}, np.array([0, -1])), r"labels reach from -1 to 0")
    refuse(classifier(), Dataset({"x": floats}, np.array([0.0, 1.0])), r"labels are float64; give whole numbers")
    refuse(classifier(), Dataset({"x": floats}, np.array([0])), r"different numbers of examples \(x 2, labels 1\)")
    refuse(classifier(), Dataset({"x": floats[:0]}, np.array([], int)), "the data are empty")
    refuse(
        classifier(), Dataset({"x": floats[:, :5]}, np.array([0, 1])), r"refuses the data \(x\[1, 5\]\).*check names"
    )
    refuse(classifier(), Dataset({"x": np.array(["a", "b"])}, np.array([0, 1])), r"array 'x' holds <U1")
    refuse(classifier(), Dataset({"x": floats * np.nan}, np.array([0, 1])), r"not numbers \(nan\)")
    refuse(classifier(), Dataset({"x": floats}, np.full(2, IGNORE)), "nothing to predict")
    refuse(classifier(), points(), r"device 'tpu9' does not exist", DeviceError, device="tpu9")
    refuse(classifier(), points(), "batch size 0: give a whole number", UsageError, batch_size=0)
    pairs = Dataset({"left": floats, "rigth": floats}, np.array([0, 1]))
    refuse(Two(), pairs, r"array 'rigth' is not an input of Two; did you mean 'right'\? its inputs are: left, right")
    refuse(causal(), Dataset({"tokens": TOKENS}), r"array 'tokens' is not an input of GPT2LMHeadModel; .*input_ids")
    refuse(masked(), Dataset({"input_ids": TOKENS}), r"no mask token: .* add its tokenizer or labels")
    repeated = Dataset({"input_ids": TOKENS}, TOKENS)
    refuse(
        masked(), repeated, r"no mask token: labels that repeat the tokens leave nothing to guess .* add the model's"
    )
    refuse(paired(), Dataset({"input_ids": TOKENS}), "no labels and T5ForConditionalGeneration needs them")
    refuse(causal(), Dataset({"input_ids": TOKENS}, np.zeros(EXAMPLES, int)), "labels are one per example, but")
    refuse(causal(), Dataset({"input_ids": TOKENS + VOCAB}), "refuses the data")


def test_models_that_read_the_same_examples_as_different_tokens_are_no_ensemble():
    models, other = [causal(), causal()], (TOKENS + 1) % VOCAB
    for data in (Dataset({"input_ids": other}), Dataset({"input_ids": TOKENS[:-1]})):
        asked = [Asked(models[0], Dataset({"input_ids": TOKENS})), Asked(models[1], data)]
        with pytest.raises(
            DataError, match=r"read the data as different tokens or labels: leave out those that differ"
        ):
            evaluate_together(asked)


def test_ensemble_of_models_that_predict_different_things_is_refused():
    with pytest.raises(DataError, match="4 classes outputs and 5 classes outputs"):
        evaluate_ensemble([classifier(4), classifier(5)], points())


def test_regression_is_mean_squared_error_of_one_model_and_of_the_mean_output():
    one, other = classifier(1), classifier(1, seed=1)
    x = points().inputs["x"]
    for labels in (RNG.normal(size=EXAMPLES), RNG.normal(size=(EXAMPLES, 1)), RNG.integers(0, 6, EXAMPLES)):
        data, wanted = Dataset({"x": x}, labels), torch.from_numpy(labels.reshape(-1, 1))
        outputs = [model(torch.from_numpy(x)).detach() for model in (one, other)]
        score = evaluate(one, data, batch_size=4)
        assert score.loss == pytest.approx((outputs[0] - wanted).square().mean().item(), rel=1e-6)
        assert (score.examples, score.accuracy, score.perplexity) == (EXAMPLES, None, None)
        both = evaluate_ensemble([one, other], data)
        assert both.loss == pytest.approx((sum(outputs) / 2 - wanted).square().mean().item(), rel=1e-6)
    refuse(
        one,
        Dataset({"x": x}, np.zeros((EXAMPLES, 2))),
        r"labels are \[11, 2\] where the model predicts \[11, 1\] numbers",
    )
    refuse(one, Dataset({"x": x}, np.full(EXAMPLES, np.nan)), "labels have values that are not finite")
    refuse(one, Dataset({"x": x}), "no labels and Sequential needs them")
    with pytest.raises(DataError, match="1 numbers outputs and 4 classes outputs: leave out"):
        evaluate_ensemble([one, classifier()], Dataset({"x": x}, np.zeros(EXAMPLES, int)))


def test_several_numbers_are_regression_where_the_config_says_so():
    config = BertConfig(**TINY, max_position_embeddings=16, num_labels=3)
    model = seeded(lambda: BertForSequenceClassification(config))
    data = Dataset({"input_ids": TOKENS}, RNG.normal(size=(EXAMPLES, 3)).astype(np.float32))
    refuse(model, data, "labels are float32; give whole numbers, one per class")
    model.config.problem_type = "regression"
    assert derive(model, data).kind is Kind.NUMBERS
    logits = model(torch.from_numpy(TOKENS)).logits.detach()
    wanted = (logits - torch.from_numpy(data.labels)).square().mean().item()
    assert evaluate(model, data).loss == pytest.approx(wanted, rel=1e-6)
    theirs = model(torch.from_numpy(TOKENS), labels=torch.from_numpy(data.labels)).loss.item()
    assert theirs == pytest.approx(wanted, rel=1e-6)
