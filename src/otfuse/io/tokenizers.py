"""Rows of embeddings and output layers are numbered by a tokenizer: those of anchor and source must number alike."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from otfuse.errors import MatchError
from otfuse.io import vocabulary as words
from otfuse.io.headers import read_json
from otfuse.io.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from otfuse.io.checkpoint import Checkpoint

# Tokens that stand for nothing until somebody gives their row a meaning, and a name.
_SPARE = re.compile(
    r"[\[<].*(?:unused|reserved|extra[_ ]?id|placeholder|dummy|spare|pad).*[\]>]|madeupword\d+", re.IGNORECASE
)
_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
_MOST = 8  # settings that are told one by one
_LONG = 40


@dataclass(frozen=True, slots=True)
class Numbered:
    """A model's folder (that of its tokenizer), with the ``rows`` of its embedding (None: not known)."""

    name: str
    folder: Path
    rows: int | None = None
    trusted: bool = False


def rows(config: Mapping[str, Any]) -> int | None:
    """How many rows an embedding of tokens has, as the config or its first part that says so has it."""
    if isinstance(size := config.get("vocab_size"), int):
        return size
    return next((n for part in config.values() if isinstance(part, dict) and (n := rows(part)) is not None), None)


def numbered(checkpoint: Checkpoint) -> Numbered:
    """A checkpoint in these words."""
    return Numbered(checkpoint.name, checkpoint.folder, rows(checkpoint.config), checkpoint.trust_remote_code)


def compare(models: Sequence[Numbered]) -> list[str]:
    """Notes on sources (the first is the anchor) whose tokenizer, templates or settings of generation are not the anchor's.

    Raises MatchError if a row belongs to one token in the anchor and to another in a source; CheckpointError if a file is
    damaged. Rows that no token has, and tokens that have no row in one of the two models, are nobody's.
    """
    anchor, notes = models[0], []
    for source in models[1:]:
        told = [
            *_tokens(anchor, source),
            *_templates(anchor, source),
            *_roles(anchor, source),
            *_generation(anchor, source),
        ]
        notes += [f"{source.name}: {note}; the result has what the anchor has" for note in told]
    return notes


def _tokens(anchor: Numbered, source: Numbered) -> list[str]:
    if not any(map(words.files, (anchor.folder, source.folder))) or _same_files(anchor.folder, source.folder):
        return []
    ours, theirs = _vocabulary(anchor), _vocabulary(source)
    if ours is None or theirs is None:
        held = [ours is not None or words.foreign(anchor.folder), theirs is not None or words.foreign(source.folder)]
        if all(held):
            return [
                "its tokenizer could not be compared with the anchor's (their files differ, and need a library that is not installed)"
            ]
        return ["it has a tokenizer and the anchor has none"] if held[1] else []
    return _compared(ours, theirs, anchor, source)


def _same_files(one: Path, other: Path) -> bool:
    """Whether all files of two tokenizers hold the same bytes."""
    ours, theirs = words.files(one), words.files(other)
    if [p.name for p in ours] != [p.name for p in theirs] or any(
        a.stat().st_size != b.stat().st_size for a, b in zip(ours, theirs, strict=True)
    ):
        return False
    return all(a.read_bytes() == b.read_bytes() for a, b in zip(ours, theirs, strict=True))


def _vocabulary(model: Numbered) -> Vocabulary | None:
    found = words.vocabulary(model.folder)
    if found is not None or not words.foreign(model.folder):
        return found
    from otfuse.io.text import find_tokenizer  # its library is slow to import, and rarely needed

    tokenizer = find_tokenizer(model.folder, trust_remote_code=model.trusted)
    return None if tokenizer is None else Vocabulary(tokenizer.get_vocab(), frozenset(tokenizer.get_added_vocab()))


def _compared(ours: Vocabulary, theirs: Vocabulary, anchor: Numbered, source: Numbered) -> list[str]:
    cut = [part for part in ours.parts if part in theirs.parts and ours.parts[part] != theirs.parts[part]]
    notes = [f"its tokenizer cuts text otherwise ({', '.join(cut)})"] if cut else []
    return notes if ours.ids == theirs.ids else [*_numbers(ours, theirs, anchor, source), *notes]


def _numbers(ours: Vocabulary, theirs: Vocabulary, anchor: Numbered, source: Numbered) -> list[str]:
    """Tokens of one side alone; MatchError where a row belongs to two."""
    plain = ours.byte_level != theirs.byte_level
    a, b = (_with_row(words.spelled(v) if plain else v.ids, m.rows) for v, m in ((ours, anchor), (theirs, source)))
    least = min((m.rows for m in (anchor, source) if m.rows is not None), default=None)
    moved = [token for token, number in a.items() if b.get(token, number) != number]
    at, there = ({number: token for token, number in side.items()} for side in (a, b))
    shared = [n for n in at if n in there and at[n] != there[n] and (least is None or n < least)]
    free = ours.added | theirs.added
    odd = [n for n in shared if at[n] not in b and there[n] not in a]
    renamed = [n for n in odd if any(t in free or _SPARE.fullmatch(t) for t in (at[n], there[n]))]
    other = sorted(set(odd) - set(renamed))
    if moved or other:
        examples = [
            f"{_cut(t)} is {a[t]} in the anchor and {b[t]} in the source" for t in sorted(moved, key=a.__getitem__)[:2]
        ]
        examples += [
            f"{n} is {_cut(at[n])} in the anchor and {_cut(there[n])} in the source" for n in other[: 2 - len(examples)]
        ]
        number = len(moved) + len(other)
        raise MatchError(
            f"{source.name} cannot be fused into {anchor.name}: {number} token{'s have' if number > 1 else ' has'} another id in the "
            f"source than in the anchor ({', '.join(examples)}), so that rows of different tokens would be mixed; give models "
            "of one tokenizer"
        )
    taken = set(renamed)
    only = [f"{_cut(there[n])} ({n}, where the anchor has {_cut(at[n])})" for n in renamed]
    only += [f"{_cut(t)} ({n})" for t, n in sorted(b.items(), key=lambda i: i[1]) if t not in a and n not in taken]
    lost = [f"{_cut(t)} ({n})" for t, n in sorted(a.items(), key=lambda i: i[1]) if t not in b and n not in taken]
    notes = [f"has {_listed(only, 'token')} that the anchor's tokenizer lacks"] if only else []
    notes += [f"lacks {_listed(lost, 'token')} of the anchor's tokenizer"] if lost else []
    return notes


def _with_row(ids: Mapping[str, int], rows: int | None) -> dict[str, int]:
    return {token: number for token, number in ids.items() if rows is None or number < rows}


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."


def _listed(items: Sequence[str], what: str) -> str:
    told = f"{len(items)} {what}{'s' if len(items) > 1 else ''}"
    return f"{told} ({', '.join(items[:3])}{', ...' if len(items) > 3 else ''})"


def _settings(folder: Path, name: str) -> dict[str, Any]:
    found = read_json(folder / name) if (folder / name).is_file() else None
    return found if isinstance(found, dict) else {}


def _templates(anchor: Numbered, source: Numbered) -> list[str]:
    ours, theirs = (_by_name(m.folder) for m in (anchor, source))
    odd = [name for name, text in theirs.items() if ours.get(name) != text]
    own = "another" if any(name in ours for name in odd) else "a"
    return (
        [f"has {own} chat template{'' if odd == [''] else ' (' + ', '.join(n or 'default' for n in odd) + ')'}"]
        if odd
        else []
    )


def _by_name(folder: Path) -> dict[str, str]:
    """Chat templates by name, the usual one by none."""
    found: dict[str, str] = {}
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        held = _settings(folder, name).get("chat_template")
        if isinstance(held, list):
            held = {t.get("name"): t.get("template") for t in held if isinstance(t, dict)}
        held = held if isinstance(held, dict) else {"": held}
        found |= {("" if n == "default" else str(n)): t.strip() for n, t in held.items() if isinstance(t, str)}
    paths = [folder / "chat_template.jinja", *sorted(folder.glob("additional_chat_templates/*.jinja"))]
    for path in (p for p in paths if p.is_file()):
        found["" if path.name == "chat_template.jinja" else path.stem] = path.read_text("utf-8", "replace").strip()
    return found


def _roles(anchor: Numbered, source: Numbered) -> list[str]:
    ours, theirs = (
        {**_settings(m.folder, "special_tokens_map.json"), **_settings(m.folder, "tokenizer_config.json")}
        for m in (anchor, source)
    )
    told = []
    for role in _ROLES:
        a, b = (held.get("content") if isinstance(held := side.get(role), dict) else held for side in (ours, theirs))
        if b is not None and a != b:
            told.append(f"{role} {_cut(b)} ({'none' if a is None else _cut(a)})")
    return [f"has other special tokens: {', '.join(told)}"] if told and ours else []


def _generation(anchor: Numbered, source: Numbered) -> list[str]:
    ours, theirs = (_settings(m.folder, "generation_config.json") for m in (anchor, source))
    odd = [
        f"{key} {_cut(value)} ({'not set' if ours.get(key) is None else _cut(ours[key])})"
        for key, value in theirs.items()
        if not (key.startswith("_") or key == "transformers_version" or value is None or value == ours.get(key))
    ]
    more = f" and {len(odd) - _MOST} more" if len(odd) > _MOST else ""
    return [f"generates with other settings: {', '.join(odd[:_MOST])}{more}"] if odd else []
