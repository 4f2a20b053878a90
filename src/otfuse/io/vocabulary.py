"""Which token has which number, read from the files of a tokenizer: nothing is imported and no text is cut.

``tokenizer.json``, ``vocab.json`` and ``vocab.txt`` are read as they are. What only a library reads (the models of
sentencepiece, tiktoken) is compared byte by byte elsewhere, and read by that library if need be.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from otfuse.errors import CheckpointError
from otfuse.io.headers import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_READ = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "tokenizer_config.json")
_FOREIGN = (".model", ".spm", ".tiktoken", ".bpe", ".codes")
# Parts of tokenizer.json that decide how a text becomes tokens.
_PARTS = ("normalizer", "pre_tokenizer", "post_processor")
_SWITCHES = ("add_bos_token", "add_eos_token", "do_lower_case", "add_prefix_space", "split_special_tokens")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """``ids`` of tokens; those ``added`` beside the model of the language; digests of ``parts`` that cut text."""

    ids: Mapping[str, int]
    added: frozenset[str] = frozenset()
    parts: Mapping[str, str] = field(default_factory=dict)
    byte_level: bool = False


def files(folder: Path) -> list[Path]:
    """The files that say which token has which number."""
    return [p for p in sorted(folder.iterdir()) if (p.name in _READ or p.suffix in _FOREIGN) and p.is_file()]


def foreign(folder: Path) -> bool:
    """Whether there are files of a tokenizer that only its own library reads."""
    return any(p.suffix in _FOREIGN for p in files(folder))


def vocabulary(folder: Path) -> Vocabulary | None:
    """The tokens of the folder's tokenizer, or None if it has none that can be read here; CheckpointError if it is damaged."""
    stamp = []
    for path in files(folder):
        at = path.stat()
        stamp.append((path.name, at.st_mtime_ns, at.st_size))
        if at.st_size == 0 and path.name != "merges.txt":
            msg = f"checkpoint {folder}: {path.name} is empty; download it again"
            raise CheckpointError(msg)
    return _read(folder, tuple(stamp))


@lru_cache(maxsize=8)  # a file of 128,000 tokens takes most of a second: once where it is checked and compared
def _read(folder: Path, stamp: tuple[tuple[str, int, int], ...]) -> Vocabulary | None:
    names = {name for name, _, _ in stamp}
    held = {name: read_json(folder / name) for name in names if name.endswith(".json")}
    parts = _switches(held.get("tokenizer_config.json"))
    byte_level = False
    if "tokenizer.json" in names:
        ids, cut, byte_level = _fast(folder / "tokenizer.json", held["tokenizer.json"])
        parts |= cut
    elif "vocab.json" in names:
        found = held["vocab.json"]
        if isinstance(found, dict) and found and all(isinstance(inner, dict) for inner in found.values()):
            return None  # one vocabulary for each of several languages
        ids, byte_level = _numbers(folder / "vocab.json", found), "merges.txt" in names
    elif "vocab.txt" in names:
        ids = _lines(folder / "vocab.txt")
    else:
        return None
    if "merges.txt" in names and "tokenizer.json" not in names:
        parts["merges.txt"] = hashlib.sha256((folder / "merges.txt").read_bytes()).hexdigest()
    added = _added(held)
    return Vocabulary(added | ids, frozenset(added), parts, byte_level)


def _switches(settings: Any) -> dict[str, str]:
    held = settings if isinstance(settings, dict) else {}
    return {key: repr(held[key]) for key in _SWITCHES if held.get(key) is not None}


def _fast(path: Path, data: Any) -> tuple[dict[str, int], dict[str, str], bool]:
    model = data.get("model") if isinstance(data, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), (dict, list)):
        msg = f"checkpoint {path.parent}: {path.name} has no vocabulary (model.vocab); download it again"
        raise CheckpointError(msg)
    vocab = model["vocab"]
    if isinstance(vocab, list):  # tokens with their scores, numbered by place
        vocab = {
            pair[0]: i for i, pair in enumerate(vocab) if isinstance(pair, list) and pair and isinstance(pair[0], str)
        }
    merges = [m if isinstance(m, str) else " ".join(map(str, m)) for m in model.get("merges") or []]
    told = {part: data.get(part) for part in _PARTS}
    told |= {"model": {**model, "vocab": None, "merges": None}, "merges": merges}
    parts = {name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest() for name, part in told.items()}
    levels = json.dumps([data.get("pre_tokenizer"), data.get("decoder")])
    return _numbers(path, vocab), parts, '"ByteLevel"' in levels


def _numbers(path: Path, found: Any) -> dict[str, int]:
    if not isinstance(found, dict) or not all(type(number) is int for number in found.values()):
        msg = f"checkpoint {path.parent}: {path.name} does not number its tokens; download it again"
        raise CheckpointError(msg)
    return found


def _lines(path: Path) -> dict[str, int]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        msg = f"checkpoint {path.parent}: {path.name} is not text in UTF-8; download it again"
        raise CheckpointError(msg) from None
    return {line: number for number, line in enumerate(text.removesuffix("\n").split("\n"))}


def _added(held: Mapping[str, Any]) -> dict[str, int]:
    """Tokens beside the vocabulary: special ones, and those that somebody added later."""
    whole, listed, settings = (
        data if isinstance(data := held.get(name), dict) else {}
        for name in ("tokenizer.json", "added_tokens.json", "tokenizer_config.json")
    )
    found = [(e.get("id"), e.get("content")) for e in whole.get("added_tokens") or [] if isinstance(e, dict)]
    found += [(number, token) for token, number in listed.items()]
    decoder = settings.get("added_tokens_decoder")
    for number, entry in decoder.items() if isinstance(decoder, dict) else ():
        found.append((number, entry.get("content") if isinstance(entry, dict) else entry))
    return {token: int(str(number)) for number, token in found if isinstance(token, str) and str(number).isdigit()}


def spelled(vocabulary: Vocabulary) -> dict[str, int]:
    """The ids with every token written as plain text: byte-level letters and the mark of sentencepiece are undone."""
    table = _letters() if vocabulary.byte_level else {}

    def plain(token: str) -> str:
        if token in vocabulary.added or not vocabulary.byte_level:
            return token.replace("\u2581", " ")
        if not all(letter in table for letter in token):
            return token
        return bytes(table[letter] for letter in token).decode("utf-8", errors="backslashreplace")

    return {plain(token): number for token, number in vocabulary.ids.items()}


@cache
def _letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for: printable ones for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
