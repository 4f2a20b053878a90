"""Every kind of data, and one sentence for every way it can be wrong."""

import json
import re

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from otfuse.errors import DataError
from otfuse.io.data import from_arrays, load_data

VISION = {
    "architectures": ["XForImageClassification"],
    "image_size": 8,
    "num_channels": 1,
    "id2label": {"0": "a", "1": "b", "2": "c"},
}
CAUSAL = {"architectures": ["XForCausalLM"], "vocab_size": 10, "max_position_embeddings": 6}
SEQ2SEQ = {
    "architectures": ["X"],
    "vocab_size": 10,
    "is_encoder_decoder": True,
    "decoder_start_token_id": 9,
    "pad_token_id": 7,
}
TEXT_NAMES = ["input_ids", "attention_mask"]
GOOD = {"pixel_values": np.zeros((4, 1, 8, 8)), "labels": np.arange(4) % 3}


def refused(sentence, path, **options):
    options = {"input_names": ["pixel_values", "mask"], "config": VISION} | options
    with pytest.raises(DataError, match=f"^{re.escape(f'data {path}: {sentence}')}$"):
        load_data(path, **options)


def refused_arrays(sentence, names=("pixel_values", "mask"), config=VISION, **arrays):
    with pytest.raises(DataError, match=f"^{re.escape(f'data arrays: {sentence}')}$"):
        from_arrays(arrays, input_names=names, config=config)


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_array_files(kind, tmp_path):
    path = tmp_path / f"data.{kind}"
    if kind == "npz":
        np.savez(path, **{k: v.astype(np.int32) if k == "labels" else v for k, v in GOOD.items()})
    else:
        save_file({"pixel_values": torch.zeros(4, 1, 8, 8, dtype=torch.bfloat16), "labels": torch.arange(4) % 3}, path)
    data = load_data(path, input_names=["pixel_values"], config=VISION, require_labels=True)
    assert (data.size, data.inputs["pixel_values"].dtype, data.labels.dtype) == (4, np.float32, np.int64)
    assert data.labels.tolist() == [0, 1, 2, 0]


def test_missing_path_and_unknown_type(tmp_path):
    refused("no such file or folder; check the path", tmp_path / "absent.npz")
    (tmp_path / "data.xyz").write_text("x")
    refused(
        "unknown type '.xyz'; give .npz, .safetensors, .txt, an image folder, or a folder saved by datasets",
        tmp_path / "data.xyz",
    )


@pytest.mark.parametrize("cut", [0, 10, 700, -1])
def test_truncated(cut, tmp_path):
    for path, save in ((tmp_path / "d.npz", np.savez), (tmp_path / "d.safetensors", None)):
        if save:
            save(path, **GOOD)
        else:
            save_file({k: torch.tensor(v) for k, v in GOOD.items()}, path)
        path.write_bytes(path.read_bytes()[:cut])
    refused("truncated or not an .npz archive; write it again with numpy.savez", tmp_path / "d.npz")
    refused("truncated or not a safetensors file; write it again", tmp_path / "d.safetensors")


def test_damaged_inside(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, pixel_values=np.arange(256.0).reshape(4, 1, 8, 8))
    whole = bytearray(path.read_bytes())
    whole[500] ^= 255
    path.write_bytes(whole)
    refused("truncated or not an .npz archive; write it again with numpy.savez", path)


def test_objects_are_refused(tmp_path):
    np.savez(tmp_path / "d.npz", pixel_values=np.array([{"a": 1}], dtype=object))
    refused(
        "'pixel_values' holds Python objects, which are pickled and refused; save numbers of one shape",
        tmp_path / "d.npz",
    )
    refused_arrays("'pixel_values' holds Python objects; give numbers", pixel_values=np.array([{}], dtype=object))


def test_names():
    pixels = GOOD["pixel_values"]
    refused_arrays(
        "no array named as an input of the model: found x, y; wanted pixel_values, mask; rename them",
        x=pixels,
        y=pixels,
    )
    refused_arrays("no array named as an input of the model: found none; wanted pixel_values, mask; rename them")
    refused_arrays(
        "array 'pixel_value' is none of the model's inputs; did you mean 'pixel_values'?", pixel_value=pixels
    )
    refused_arrays(
        "array 'label' is none of the model's inputs; did you mean 'labels'?", pixel_values=pixels, label=[0] * 4
    )


def test_other_arrays_are_left_aside_aloud(caplog):
    from_arrays(GOOD | {"weights_of_rows": np.zeros(2)}, input_names=["pixel_values"], config=VISION)
    assert "arrays weights_of_rows are no inputs of the model and are left aside" in caplog.text


def test_missing_labels(tmp_path):
    np.savez(tmp_path / "d.npz", pixel_values=GOOD["pixel_values"])
    refused("no labels, which are needed here; add an array 'labels'", tmp_path / "d.npz", require_labels=True)
    assert load_data(tmp_path / "d.npz", input_names=["pixel_values"], config=VISION).labels is None


def test_lengths_and_emptiness():
    pixels = GOOD["pixel_values"]
    refused_arrays(
        "'labels' has 3 examples, 'pixel_values' has 4; give as many of each", pixel_values=pixels, labels=[0] * 3
    )
    refused_arrays("'pixel_values' is empty; give at least one example", pixel_values=pixels[:0])
    refused_arrays("'pixel_values' is a single number; its first axis must be the examples", pixel_values=3)
    refused_arrays("'pixel_values' has rows of different lengths; pad them to one", pixel_values=[[1, 2], [3]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad):
    pixels = np.zeros((4, 1, 8, 8))
    pixels[3, 0, 7, 7] = bad
    refused_arrays(
        "'pixel_values' has values that are not finite (NaN or infinite); clean the data", pixel_values=pixels
    )


def test_types():
    refused_arrays(
        "'pixel_values' has values too large for float32; scale the data", pixel_values=np.full((1, 1, 8, 8), 1e300)
    )
    refused_arrays("'pixel_values' holds text; give numbers", pixel_values=np.array(["a"]))
    refused_arrays("'pixel_values' holds values of type complex128; give numbers", pixel_values=np.array([1j]))
    refused_arrays(
        "'input_ids' must hold integers, its type is float64 with fractions", TEXT_NAMES, CAUSAL, input_ids=[[0.5]]
    )
    huge = np.array([[2**63]], dtype=np.uint64)
    refused_arrays(
        "'input_ids' has integers beyond 64 bits with a sign; give smaller ones", TEXT_NAMES, CAUSAL, input_ids=huge
    )
    given = {"input_ids": np.array([[1.0, 2.0]]), "attention_mask": np.array([[True, False]])}
    kept = from_arrays(given, input_names=TEXT_NAMES, config=CAUSAL).inputs
    assert {name: (array.dtype, array.tolist()) for name, array in kept.items()} == {
        "input_ids": (np.int64, [[1, 2]]),
        "attention_mask": (np.int64, [[1, 0]]),
    }
    pixels = from_arrays(
        {"pixel_values": np.ones((1, 1, 8, 8), dtype=np.uint8)}, input_names=["pixel_values"], config=VISION
    )
    assert pixels.inputs["pixel_values"].dtype == np.float32
    free = from_arrays({"x": np.ones((2, 3)), "n": np.ones((2, 3), dtype=np.int8)}, input_names=["x", "n"])
    assert (free.inputs["x"].dtype, free.inputs["n"].dtype) == (np.float32, np.int64)


def test_images_fit():
    def wrong(shape, hint):
        refused_arrays(
            f"'pixel_values' has shape {list(shape)}, the model takes [examples, 1, 8, 8]; {hint}",
            pixel_values=np.zeros(shape),
        )

    wrong((2, 1, 8, 9), "resize the images")
    wrong((2, 3, 8, 8), "resize the images")
    wrong((2, 8, 8), "the axis of channels is missing: add it as axis 1")
    wrong((2, 8, 8, 1), "move the channels to axis 1")
    nested = {"vision_config": {"image_size": [8, 4], "num_channels": 1}}
    refused_arrays(
        "'pixel_values' has shape [2, 1, 8, 8], the model takes [examples, 1, 8, 4]; resize the images",
        config=nested,
        pixel_values=np.zeros((2, 1, 8, 8)),
    )


def test_tokens_fit():
    def wrong(sentence, config=CAUSAL, **arrays):
        refused_arrays(sentence, [*TEXT_NAMES, "token_type_ids"], config, **arrays)

    foreign = "outside the model's 10 tokens of the vocabulary; were the data made for another model?"
    wrong(f"'input_ids' holds 10, {foreign}", input_ids=[[1, 10]])
    wrong(f"'input_ids' holds -1, {foreign}", input_ids=[[1, -1]])
    wrong("'input_ids' has 7 tokens per example, the model takes 6; cut them", input_ids=[[1] * 7])
    wrong("'input_ids' has shape [3], wanted [examples, tokens]; reshape it", input_ids=[1, 2, 3])
    wrong(
        "'attention_mask' has shape [1, 2], 'input_ids' [1, 3]; make them equal",
        input_ids=[[1] * 3],
        attention_mask=[[1] * 2],
    )
    types = "outside the model's 2 token types; were the data made for another model?"
    wrong(f"'token_type_ids' holds 2, {types}", CAUSAL | {"type_vocab_size": 2}, input_ids=[[1]], token_type_ids=[[2]])
    wrong(f"'labels' holds 11, {foreign}", input_ids=[[1, 2]], labels=[[-100, 11]])
    relative = CAUSAL | {"relative_attention_num_buckets": 4}
    assert from_arrays({"input_ids": [[1] * 7]}, input_names=TEXT_NAMES, config=relative).size == 1


def test_labels_fit():
    pixels = GOOD["pixel_values"]
    sentence = "'labels' holds 3, outside the model's 3 classes; were the data made for another model?"
    refused_arrays(sentence, pixel_values=pixels, labels=[0, 1, 2, 3])
    refused_arrays(
        "'labels' has shape [4, 1], a classifier takes one class per example", pixel_values=pixels, labels=[[0]] * 4
    )
    two = {"architectures": ["XForSequenceClassification"], "vocab_size": 10}
    refused_arrays(sentence.replace("3 classes", "2 classes"), TEXT_NAMES, two, input_ids=[[1]], labels=[3])
    regression = two | {"problem_type": "regression"}
    data = from_arrays({"input_ids": [[1]], "labels": [0.5]}, input_names=TEXT_NAMES, config=regression)
    assert data.labels.dtype == np.float32


def test_decoder_reads_labels_shifted():
    names = [*TEXT_NAMES, "decoder_input_ids"]
    data = from_arrays({"input_ids": [[1, 2]], "labels": [[3, -100, 4]]}, input_names=names, config=SEQ2SEQ)
    assert data.inputs["decoder_input_ids"].tolist() == [[9, 3, 7]]
    refused_arrays(
        "no array 'decoder_input_ids', which an encoder-decoder needs; add it, or 'labels' of [example, token]",
        names,
        SEQ2SEQ,
        input_ids=[[1]],
    )


def picture(path, value, size=(8, 8), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(path)


def test_image_folder(tmp_path):
    for name, value in (("b/1.png", 0), ("a/1.png", 255), ("b/2.PNG", 51)):
        picture(tmp_path / name, value, (16, 16), "RGB")
    (tmp_path / ".hidden").mkdir()
    load = lambda config: load_data(tmp_path, input_names=["pixel_values"], config=config, require_labels=True)  # noqa: E731
    data = load(VISION)
    assert data.inputs["pixel_values"].shape == (3, 1, 8, 8)
    assert data.inputs["pixel_values"][:, 0, 0, 0] == pytest.approx([1, -1, 51 / 127.5 - 1])
    assert data.labels.tolist() == [0, 1, 1]
    assert load(VISION | {"label2id": {"b": 0, "a": 2, "c": 1}}).labels.tolist() == [2, 0, 0], "the model's own numbers"


@pytest.mark.parametrize("channels", [1, 3])
def test_images_go_through_the_checkpoints_own_processor(channels, tmp_path):
    processor = transformers.ViTImageProcessorPil(
        size={"height": 8, "width": 8}, image_mean=[0.25] * channels, image_std=[0.5] * channels
    )
    processor.save_pretrained(tmp_path / "model")
    picture(tmp_path / "images/x.png", 51, (20, 10), "RGB")
    config = VISION | {"num_channels": channels}
    data = load_data(tmp_path / "images", input_names=["pixel_values"], config=config, folder=tmp_path / "model")
    assert data.inputs["pixel_values"].shape == (1, channels, 8, 8)
    assert data.inputs["pixel_values"].ravel() == pytest.approx((51 / 255 - 0.25) / 0.5, abs=1e-6)
    assert data.labels is None


def test_image_folder_faults(tmp_path):
    empty, mixed, broken = (tmp_path / n for n in ("empty", "mixed", "broken"))
    empty.mkdir()
    refused("no images in the folder or its sub-folders; give images, or a file of arrays", empty)
    picture(mixed / "x.png", 0)
    picture(mixed / "a/x.png", 0)
    refused("images lie both in the folder and in sub-folders; use one sub-folder per class, or none", mixed)
    picture(broken / "x.png", 0, (64, 64))
    (broken / "x.png").write_bytes((broken / "x.png").read_bytes()[:50])
    with pytest.raises(DataError, match=r"x\.png: cannot be read as an image \(\w+\); replace or remove it$"):
        load_data(broken, input_names=["pixel_values"], config=VISION)
    with pytest.raises(
        DataError, match=r"neither an image processor nor the config tells the size of the model's images"
    ):
        load_data(mixed / "a", input_names=["pixel_values"], config={})


@pytest.fixture
def words(tmp_path):
    """A tokenizer of ten words: [CLS] text [SEP]."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e", "f"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(tmp_path / "words")
    (tmp_path / "words/config.json").write_text(json.dumps({"model_type": "bert"}))
    return tmp_path / "words"


def test_text_in_blocks(words, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a b c d e f a\nb c d e")
    data = load_data(path, input_names=TEXT_NAMES, config=CAUSAL, folder=words, sequence_length=5, require_labels=True)
    assert data.inputs["input_ids"].tolist() == [[2, 4, 5, 6, 3], [2, 7, 8, 9, 3], [2, 4, 5, 6, 3]]
    assert np.array_equal(data.labels, data.inputs["input_ids"])
    assert data.inputs["attention_mask"].tolist() == [[1] * 5] * 3
    assert load_data(path, input_names=TEXT_NAMES, config=CAUSAL, folder=words).inputs["input_ids"].shape == (2, 6)
    classifier = CAUSAL | {"architectures": ["XForSequenceClassification"]}
    assert load_data(path, input_names=["input_ids"], config=classifier, folder=words).labels is None
    names = [*TEXT_NAMES, "decoder_input_ids"]
    both = load_data(path, input_names=names, config=SEQ2SEQ, folder=words, sequence_length=5)
    assert both.inputs["decoder_input_ids"][1].tolist() == [9, 2, 7, 8, 9]
    path.write_text("a b")
    assert load_data(path, input_names=TEXT_NAMES, config=CAUSAL, folder=words).inputs["input_ids"].tolist() == [
        [2, 4, 5, 3]
    ]


def test_text_faults(words, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("  \n")
    common = {"input_names": TEXT_NAMES, "config": CAUSAL}
    refused("text needs a tokenizer, and this model has no folder; give arrays of 'input_ids'", path, **common)
    (tmp_path / "bare").mkdir()
    refused(
        f"text needs a tokenizer, and {tmp_path / 'bare'} has none that can be read; add its files or give arrays of 'input_ids'",
        path,
        folder=tmp_path / "bare",
        **common,
    )
    common["folder"] = words
    refused("the text is empty; give some text", path, **common)
    path.write_text("a b c")
    refused(
        "blocks of 7 tokens asked for, the model takes 1 to 6; choose another length", path, sequence_length=7, **common
    )
    refused(
        "blocks of 2 tokens leave no place beside special tokens; give a greater length",
        path,
        sequence_length=2,
        **common,
    )
    refused("'input_ids' holds 6, outside the model's 6 tokens of the vocabulary; were the data made for another model?", path, **common | {"config": CAUSAL | {"vocab_size": 6}})  # fmt: skip
    path.write_bytes(b"\xff\xfe\xfa")
    refused("not text in UTF-8; convert the file", path, **common)


def saved(columns, path, features=None):
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(path)
    return path


def test_datasets_folder_with_arrays(tmp_path):
    rows = {"input_ids": [[1, 2, 3], [4]], "label": [1, 0], "text": ["x", "y"]}
    config = {"architectures": ["XForSequenceClassification"], "vocab_size": 10, "pad_token_id": 9}
    data = load_data(saved(rows, tmp_path / "d"), input_names=TEXT_NAMES, config=config, require_labels=True)
    assert data.inputs["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert data.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert data.labels.tolist() == [1, 0]
    pixels = {"pixel_values": np.arange(128.0).reshape(2, 1, 8, 8).tolist()}
    data = load_data(saved(pixels, tmp_path / "p"), input_names=["pixel_values"], config=VISION)
    assert data.inputs["pixel_values"].tolist() == pixels["pixel_values"]


def test_datasets_folder_with_images_or_text(tmp_path, words):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    rows = {"image": [Image.new("L", (8, 8), 255)], "label": [2]}
    data = load_data(saved(rows, tmp_path / "i", features), input_names=["pixel_values"], config=VISION)
    assert (data.inputs["pixel_values"] == 1).all()
    assert data.labels.tolist() == [2]
    rows = {"sentence": ["a b", "c"], "label": [0, 1]}
    config = CAUSAL | {"architectures": ["XForSequenceClassification"]}
    data = load_data(saved(rows, tmp_path / "t"), input_names=TEXT_NAMES, config=config, folder=words)
    assert data.inputs["input_ids"].tolist() == [[2, 4, 5, 3], [2, 6, 3, 0]]
    assert data.labels.tolist() == [0, 1]


def test_datasets_folder_faults(tmp_path):
    refused("the dataset is empty; give at least one example", saved({"pixel_values": []}, tmp_path / "e"))
    refused(
        "no array named as an input of the model: found number, price; wanted pixel_values, mask; rename them",
        saved({"price": [1.0], "number": [2]}, tmp_path / "n"),
    )
    both = tmp_path / "both"
    datasets.DatasetDict(
        {"train": datasets.Dataset.from_dict({"x": [1]}), "test": datasets.Dataset.from_dict({"x": [1]})}
    ).save_to_disk(both)
    refused(f"this folder holds the splits test, train; give one of them: {both / 'test'} or {both / 'train'}", both)
    for file in (both / "test").glob("*.arrow"):
        file.unlink()
    with pytest.raises(DataError, match=r"cannot be read by datasets \(\w+\); save it again$"):
        load_data(both / "test", input_names=["x"])
