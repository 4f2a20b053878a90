"""A folder that holds an adapter is no model: it is refused with the commands that make it one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from otfuse.errors import CheckpointError
from otfuse.io.headers import read_json

# What peft calls a task, and the class of transformers that is loaded for it.
_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}


def refuse_adapter(path: str | Path, folder: Path) -> None:
    """CheckpointError if the folder holds an adapter, alone or beside full weights."""
    if not (folder / "adapter_config.json").is_file():
        return
    settings = read_json(folder / "adapter_config.json")
    settings = settings if isinstance(settings, dict) else {}
    weights = any(
        (folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    )
    held = "an adapter beside full weights" if weights else "an adapter and no model of its own"
    instead = "; if the weights hold it already, remove adapter_config.json" if weights else ""
    name, merged = _places(str(path), folder)
    msg = (
        f"checkpoint {path}: this folder holds {held}; merge it into its base model with `pip install peft` and "
        f"`{_merging(name, merged, settings, own_words=any(folder.glob('tokenizer*')))}`, then give {merged}{instead}"
    )
    raise CheckpointError(msg)


def _places(path: str, folder: Path) -> tuple[str, str]:
    """What peft is told of the adapter, and the folder to write: beside it, or here for a name of the hub."""
    if not Path(path).is_dir():
        name = path.partition("@")[0]
        return name, f"{Path(name).name}-merged"
    place = Path(path) if Path(path).name not in ("", "..") else folder.resolve()
    return str(place), f"{place}-merged"


def _merging(name: str, merged: str, settings: dict[str, Any], *, own_words: bool) -> str:
    """The command that writes base model, adapter and tokenizer as one model."""
    base = settings.get("base_model_name_or_path")
    base = base if isinstance(base, str) and base else "ITS-BASE-MODEL"
    kind = _CLASSES.get(str(settings.get("task_type")), "AutoModel")
    code = (
        f"from peft import PeftModel; from transformers import {kind}, AutoTokenizer; "
        f"PeftModel.from_pretrained({kind}.from_pretrained({base!r}), {name!r}).merge_and_unload().save_pretrained({merged!r}); "
        f"AutoTokenizer.from_pretrained({(name if own_words else base)!r}).save_pretrained({merged!r})"
    )
    plain = not set(code) & set('"$`!\\')
    return f'python -c "{code}"' if plain else f"python -c {shlex.quote(code)}"
