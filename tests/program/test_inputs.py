"""Example inputs made from a config, and what cannot be made."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from otfuse.errors import TraceError
from otfuse.program.inputs import example_inputs, telling_number
from otfuse.program.outputs import main_outputs
from otfuse.testing.examples import EXAMPLES

FROM_CONFIG = [name for name in EXAMPLES if EXAMPLES[name].from_config]


@pytest.mark.parametrize("name", FROM_CONFIG)
def test_inputs_made_from_the_config_can_be_run(name):
    model, given = EXAMPLES[name].build(0)
    inputs = example_inputs(model)
    with torch.no_grad():
        assert all(torch.isfinite(y).all() for y in main_outputs(model(**inputs)))
    assert set(inputs) - {"attention_mask"} == set(given) - {"attention_mask"}


def test_token_ids_are_distinct_and_none_is_special():
    model, _ = EXAMPLES["bert"].build(0)
    rows = example_inputs(model)["input_ids"]
    assert all(len(set(row.tolist())) == len(row) for row in rows)
    assert not set(rows.flatten().tolist()) & {0, 1, 2}
    assert rows[0].tolist() != rows[1].tolist()


def test_a_module_without_a_config_asks_for_inputs():
    with pytest.raises(TraceError, match=r"^Linear has no config .* give example_inputs"):
        example_inputs(nn.Linear(3, 4))


def test_an_input_that_no_rule_makes_is_named():
    class Strange(nn.Module):
        config = transformers.BertConfig()

        def forward(self, input_ids, spectra):
            return input_ids, spectra

    with pytest.raises(TraceError, match=r"^Strange: no rule to make spectra from its config; give example_inputs"):
        example_inputs(Strange())


def test_logits_are_what_a_model_with_a_head_is_for():
    out = {
        "loss": torch.ones(1),
        "logits": torch.zeros(2, 3),
        "hidden_states": (torch.ones(4),),
        "encoder_x": torch.ones(5),
    }
    (found,) = main_outputs(out)
    assert found.shape == (2, 3)


def test_without_logits_states_of_inner_layers_and_of_one_side_do_not_count():
    out = {
        "last_hidden_state": torch.zeros(2, 3),
        "pooler_output": torch.zeros(2),
        "encoder_last_hidden_state": torch.ones(5),
    }
    assert [tuple(y.shape) for y in main_outputs(out)] == [(2, 3), (2,)]


@pytest.mark.parametrize(("sizes", "number"), [([], 2), ([8, 16], 3), ([6, 35], 11), ([12, 7, 5], 11), ([0, 1], 2)])
def test_a_number_of_examples_that_is_no_factor_of_anything(sizes, number):
    assert telling_number(sizes) == number
