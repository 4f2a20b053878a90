"""Rows are numbered by a tokenizer: what numbers alike passes, what does not is refused, what else differs is told."""

import json
import re

import pytest
from tokenizers import Tokenizer, models

from otfuse.errors import CheckpointError, MatchError
from otfuse.io.companions import require_whole
from otfuse.io.tokenizers import Numbered, compare, rows
from otfuse.io.vocabulary import vocabulary

WORDS = ["<unk>", "<pad>", "</s>", *"abcdefghij"]
IDS = {word: i for i, word in enumerate(WORDS)}
SWAPPED = IDS | {"c": IDS["d"], "d": IDS["c"]}


def fast(ids=None, added=(), **parts):
    """A tokenizer.json whose special tokens are the first three, with others ``added``."""
    tokens = [{"id": i, "content": t, "special": True} for i, t in [*enumerate(WORDS[:3]), *added]]
    return {
        "added_tokens": tokens,
        "model": {"type": "WordLevel", "vocab": IDS if ids is None else ids, "unk_token": "<unk>"},
    } | parts


def lay(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def notes(tmp_path, ours, theirs, sizes=(None, None)):
    folders = [lay(tmp_path / name, **files) for name, files in (("a", ours), ("b", theirs))]
    found = compare([Numbered(f.name, f, n) for f, n in zip(folders, sizes, strict=True)])
    assert all(note.startswith("b: ") and note.endswith("; the result has what the anchor has") for note in found)
    return [note[3:].partition("; the result")[0] for note in found]


def refused(tmp_path, said, *sides, **options):
    with pytest.raises(MatchError) as caught:
        notes(tmp_path, *sides, **options)
    assert re.fullmatch(
        rf"b cannot be fused into a: {said}, so that rows of different tokens would be mixed; give models of one tokenizer",
        str(caught.value),
    )


LISTED = "\n".join(WORDS) + "\n"
SCORED = {"model": {"type": "Unigram", "vocab": [[word, -1.0] for word in WORDS]}}


@pytest.mark.parametrize(
    "other", [{"tokenizer__json": fast()}, {"vocab__json": IDS}, {"vocab__txt": LISTED}, {"vocab__txt": LISTED[:-1]}]
)
def test_equal_ids_pass_in_whatever_file(other, tmp_path):
    assert notes(tmp_path, {"tokenizer__json": fast()}, other) == []


def test_tokenizers_of_other_types_pass_with_a_note(tmp_path):
    assert notes(tmp_path, {"tokenizer__json": fast()}, {"tokenizer__json": SCORED}) == [
        "its tokenizer cuts text otherwise (model)"
    ]


def test_other_ids_are_counted_and_two_are_shown(tmp_path):
    said = r"2 tokens have another id in the source than in the anchor \('c' is 5 in the anchor and 6 in the source, 'd' is 6 .* 5 in the source\)"
    refused(tmp_path, said, {"tokenizer__json": fast()}, {"tokenizer__json": fast(SWAPPED)})
    refused(tmp_path, said, {"tokenizer__json": fast()}, {"vocab__txt": "\n".join(sorted(SWAPPED, key=SWAPPED.get))})


def test_words_that_the_other_does_not_know_at_the_same_place(tmp_path):
    others = {word.upper() if len(word) == 1 else word: i for word, i in IDS.items()}
    said = r"10 tokens have .* \(3 is 'a' in the anchor and 'A' in the source, 4 is 'b' in the anchor and 'B' in the source\)"
    refused(tmp_path, said, {"tokenizer__json": fast()}, {"tokenizer__json": fast(others)})


def test_one_added_token_in_another_place(tmp_path):
    ours, theirs = fast(added=[(13, "<tool>")]), fast(added=[(13, "<x>"), (14, "<tool>")])
    said = (
        r"1 token has another id in the source than in the anchor \('<tool>' is 13 in the anchor and 14 in the source\)"
    )
    refused(tmp_path, said, {"tokenizer__json": ours}, {"tokenizer__json": theirs}, sizes=(16, 16))


def test_tokens_without_a_row_are_nobodys(tmp_path):
    ours, theirs = fast(added=[(13, "<tool>")]), fast(added=[(13, "<x>"), (14, "<tool>")])
    assert notes(tmp_path, {"tokenizer__json": ours}, {"tokenizer__json": theirs}, (13, 13)) == []


def test_tokens_of_one_side_are_told(tmp_path):
    ours, theirs = fast(added=[(20, "<old>")]), fast(added=[(13, "<x>"), (14, "<y>")])
    assert notes(tmp_path, {"tokenizer__json": ours}, {"tokenizer__json": theirs}) == [
        "has 2 tokens ('<x>' (13), '<y>' (14)) that the anchor's tokenizer lacks",
        "lacks 1 token ('<old>' (20)) of the anchor's tokenizer",
    ]


@pytest.mark.parametrize("spare", ["[unused7]", "<|reserved_special_token_0|>", "<extra_id_3>", "madeupword0001"])
def test_a_spare_token_that_got_a_name_is_told(spare, tmp_path):
    ours, theirs = IDS | {spare: 13}, IDS | {"<tool>": 13}
    said = f"has 1 token ('<tool>' (13, where the anchor has '{spare}')) that the anchor's tokenizer lacks"
    assert notes(tmp_path, {"tokenizer__json": fast(ours)}, {"tokenizer__json": fast(theirs)}) == [said]


@pytest.mark.parametrize("where", ["added_tokens__json", "tokenizer_config__json"])
def test_added_tokens_are_read_wherever_they_are_kept(where, tmp_path):
    kept = {"<x>": 13} if where.startswith("added") else {"added_tokens_decoder": {"13": {"content": "<x>"}}}
    (note,) = notes(tmp_path, {"vocab__json": IDS}, {"vocab__json": IDS, where: kept})
    assert note == "has 1 token ('<x>' (13)) that the anchor's tokenizer lacks"


def test_byte_level_letters_are_compared_as_text(tmp_path):
    ours = fast({"<unk>": 0, "▁the": 1, "é": 2, "a": 3})
    level = {"type": "ByteLevel", "add_prefix_space": False}
    theirs = fast({"<unk>": 0, "Ġthe": 1, "Ã©": 2, "a": 3}, pre_tokenizer=level)
    ours["added_tokens"] = theirs["added_tokens"] = []
    assert notes(tmp_path, {"tokenizer__json": ours}, {"tokenizer__json": theirs}) == [
        "its tokenizer cuts text otherwise (pre_tokenizer)"
    ]
    theirs["model"]["vocab"] |= {"Ġthe": 2, "Ã©": 1}
    refused(tmp_path, r"2 tokens have .*\(' the' is 1 .*", {"tokenizer__json": ours}, {"tokenizer__json": theirs})


def test_files_that_only_a_library_reads(tmp_path):
    assert notes(tmp_path, {"spiece__model": "x"}, {"spiece__model": "x"}) == []
    (note,) = notes(tmp_path, {"spiece__model": "x"}, {"spiece__model": "y"})
    assert note.startswith("its tokenizer could not be compared with the anchor's")


def test_one_side_without_a_tokenizer(tmp_path):
    assert notes(tmp_path, {}, {"tokenizer__json": fast()}) == ["it has a tokenizer and the anchor has none"]
    assert notes(tmp_path / "..", {}, {}) == []


def test_the_anchor_alone_has_one(tmp_path):
    assert notes(tmp_path, {"tokenizer__json": fast()}, {}) == []


SETTINGS = {
    "template of the source": ({}, {"chat_template__jinja": "x"}, ["has a chat template"]),
    "another template": ({"tokenizer_config__json": {"chat_template": "x"}}, {"chat_template__jinja": "y"}, ["has another chat template"]),
    "the same in another file": ({"tokenizer_config__json": {"chat_template": "x"}}, {"chat_template__jinja": "x\n"}, []),
    "named template": ({}, {"tokenizer_config__json": {"chat_template": [{"name": "rag", "template": "x"}]}}, ["has a chat template (rag)"]),
    "template of the anchor": ({"chat_template__jinja": "x"}, {}, []),
    "end token": (
        {"tokenizer_config__json": {"eos_token": "</s>", "pad_token": "<p>"}},
        {"tokenizer_config__json": {"eos_token": {"content": "<end>"}, "pad_token": {"content": "<p>"}}},
        ["has other special tokens: eos_token '<end>' ('</s>')"],
    ),
    "generation": (
        {"generation_config__json": {"eos_token_id": 2, "transformers_version": "4"}},
        {"generation_config__json": {"eos_token_id": [2, 3], "top_p": 0.9, "transformers_version": "5"}},
        ["generates with other settings: eos_token_id [2, 3] (2), top_p 0.9 (not set)"],
    ),
    "switches": (
        {"tokenizer_config__json": {"add_bos_token": True}}, {"tokenizer_config__json": {"add_bos_token": False}},
        ["its tokenizer cuts text otherwise (add_bos_token)"],
    ),
    "no objects": ({"tokenizer_config__json": [], "generation_config__json": 3}, {"tokenizer_config__json": 7, "special_tokens_map__json": []}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_source_are_told(name, tmp_path):
    ours, theirs, said = SETTINGS[name]
    assert notes(tmp_path, {"vocab__json": IDS, **ours}, {"vocab__json": IDS, **theirs}) == said


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer.json", "{}", "has no vocabulary (model.vocab); download it again"),
        ("tokenizer.json", "[]", "has no vocabulary (model.vocab); download it again"),
        ("tokenizer.json", '{"model": {"vocab": {"a": "b"}}}', "does not number its tokens; download it again"),
        ("tokenizer.json", "", "is empty; download it again"),
        ("tokenizer.json", '{"model": {"voc', "is not valid JSON (line 1"),
        ("vocab.json", "[]", "does not number its tokens; download it again"),
        ("vocab.txt", b"\xff\xfe", "is not text in UTF-8; download it again"),
        ("tokenizer.model", "", "is empty; download it again"),
    ],
)
def test_a_broken_file_is_told_before_any_work(file, content, said, tmp_path):
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=re.escape(f"checkpoint {tmp_path}: {file} {said}")):
        require_whole(tmp_path)


def test_what_libraries_write_is_read_as_they_read_it(tmp_path):
    byte = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0))
    for tokenizer in (byte, unigram, Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}))):
        tokenizer.add_special_tokens(["<s>"])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        assert vocabulary(tmp_path).ids == tokenizer.get_vocab(with_added_tokens=True)


def test_vocabularies_for_each_of_several_languages_are_left_to_their_library(tmp_path):
    lay(tmp_path, vocab__json={"eng": IDS, "fra": IDS})
    assert vocabulary(tmp_path) is None


def test_rows_are_found_in_parts_of_a_config():
    assert rows({"a": 1, "vision": {"size": 3}, "text_config": {"vocab_size": 7}}) == 7
    assert rows({"vocab_size": 9, "text_config": {"vocab_size": 7}}) == 9
    assert rows({}) is None
