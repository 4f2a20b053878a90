"""Folders as people have them, through the command line: one sentence, nothing left behind."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tiny import build, listing, save


def no_processor(place):
    (place / "images").mkdir()
    Image.new("L", (8, 8)).save(place / "images/x.png")
    (place / "vit0/preprocessor_config.json").unlink()
    return ["vit0", "vit1", "--data", place / "images", "--recipe", "otfusion-acts"]


def broken_tokenizer(place):
    (place / "bert1/tokenizer.json").write_text('{"version": "1.0"}')
    return ["bert0", "bert1"]


def other_tokens(place):
    settings = json.loads((place / "bert1/tokenizer.json").read_text())
    vocab = settings["model"]["vocab"]
    first, second = [token for token in vocab if len(token) == 1][:2]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (place / "bert1/tokenizer.json").write_text(json.dumps(settings))
    return ["bert0", "bert1"]


def an_adapter(place):
    (place / "bert1/adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    return ["bert0", "bert1"]


def a_pointer(place):
    (place / "bert0/spiece.model").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    return ["bert0", "bert1"]


CASES = {
    no_processor: "images need an image processor, and",
    broken_tokenizer: "tokenizer.json has no vocabulary (model.vocab)",
    other_tokens: "2 tokens have another id in the source than in the anchor",
    an_adapter: "`pip install peft` and `python -c",
    a_pointer: "is a pointer of Git LFS and not the file itself",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_is_wrong_beside_the_weights_is_one_sentence(case, tmp_path, otfuse):
    for seed in (0, 1):
        save(
            build("vit" if case is no_processor else "bert", seed),
            tmp_path / f"{'vit' if case is no_processor else 'bert'}{seed}",
        )
    models = [
        tmp_path / part if isinstance(part, str) and (tmp_path / part).is_dir() else part for part in case(tmp_path)
    ]
    before = listing(tmp_path)
    done = otfuse("fuse", *models, "--out", tmp_path / "out", "-q")
    assert done.status == 1
    assert CASES[case] in done.err
    assert len(done.err.splitlines()) == 1
    assert listing(tmp_path) == before


def test_what_only_the_source_has_is_told(tmp_path, otfuse):
    for seed in (0, 1):
        save(build("bert", seed), tmp_path / f"bert{seed}")
    (tmp_path / "bert1/chat_template.jinja").write_text("{{ x }}")
    (tmp_path / "bert0/1_Extra").mkdir()
    (tmp_path / "bert0/1_Extra/card.yaml").write_text("x: 1")
    done = otfuse(
        "fuse", tmp_path / "bert0", tmp_path / "bert1", "--out", tmp_path / "out", "-q", "--recipe", "vanilla"
    )
    assert done.status == 0, done.err
    notes = json.loads((tmp_path / "out/fusion.json").read_text())["notes"]
    assert [note for note in notes if "chat template" in note] == [
        f"{tmp_path / 'bert1'}: has a chat template; the result has what the anchor has"
    ]
    assert (tmp_path / "out/1_Extra/card.yaml").read_text() == "x: 1"
