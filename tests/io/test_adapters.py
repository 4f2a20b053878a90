"""A folder with an adapter is refused with the two commands that merge it."""

import ast
import json
import re
import shlex

import pytest

from otfuse.errors import CheckpointError
from otfuse.io.checkpoint import open_checkpoint


def said(path):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    return str(caught.value)


def commands(sentence):
    install, merge = (shlex.split(c) for c in re.findall(r"`([^`]+)`", sentence))
    ast.parse(merge[2])
    assert install == ["pip", "install", "peft"]
    assert merge[:2] == ["python", "-c"]
    return merge[2]


def adapter(folder, **settings):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "adapter_model.safetensors").write_text("x")
    return folder


def test_an_adapter_alone(tmp_path):
    folder = adapter(tmp_path / "lora", base_model_name_or_path="org/base-7b", task_type="CAUSAL_LM")
    sentence = said(folder)
    assert sentence.startswith(f"checkpoint {folder}: this folder holds an adapter and no model of its own; merge it")
    assert sentence.endswith(f"then give {folder}-merged")
    code = commands(sentence)
    assert f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('org/base-7b'), '{folder}')" in code
    assert f".merge_and_unload().save_pretrained('{folder}-merged')" in code
    assert "AutoTokenizer.from_pretrained('org/base-7b')" in code


def test_an_adapter_beside_full_weights(bert_folder):
    (bert_folder / "tokenizer.json").write_text("{}")
    sentence = said(adapter(bert_folder, base_model_name_or_path="org/base", task_type="SEQ_CLS"))
    assert "holds an adapter beside full weights" in sentence
    assert sentence.endswith("if the weights hold it already, remove adapter_config.json")
    assert f"AutoTokenizer.from_pretrained('{bert_folder}')" in commands(sentence)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"base_model_name_or_path": null}', '{"base_model_name_or_path": "it\'s \\"$X\\""}']
)
def test_settings_that_say_little_or_odd_things(text, tmp_path):
    (tmp_path / "adapter_config.json").write_text(text)
    assert "AutoModel.from_pretrained(" in commands(said(tmp_path))


def test_a_damaged_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{")
    assert "adapter_config.json is not valid JSON" in said(tmp_path)
