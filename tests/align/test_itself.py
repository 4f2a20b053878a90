"""A model fused with itself is itself under every named recipe: exactly, or within 5 % of its outputs where maps are soft."""

from __future__ import annotations

import pytest
import torch

import otfuse
from align_copies import probe
from otfuse.core import recipe as recipes
from otfuse.flow.proof.gate import change
from otfuse.testing.examples import example
from otfuse.testing.record import randomise

MODELS = ("bert", "roberta", "gpt2", "llama_gqa", "hf_vit", "t5", "mixtral")
SOFT = (
    5e-2  # at the regularisers of the paper a little mass leaks between the units of models as small as these (24 wide)
)
EXACT = 1e-5  # rounding


@pytest.mark.parametrize("recipe", recipes.names())
@pytest.mark.parametrize("name", MODELS)
def test_a_model_fused_with_itself_is_itself(name, recipe):
    model, inputs = example(name).build(0)
    model = randomise(model, 0)
    fused = otfuse.fuse([model, model], recipe, data=probe(model, inputs, rows=48), verify=False).model
    with torch.no_grad():
        before, after = (_outputs(m(**inputs)) for m in (model, fused))
    soft = recipe.startswith("otfusion") and recipe != "otfusion-emd"
    assert change(after, before) < (SOFT if soft else EXACT)


def test_a_table_of_one_row_would_mix_all_units():
    """What the rule is for: with ``unread: compare``, as published, the class token's own soft map moves it."""
    model = example("hf_vit").build(0)[0]
    model = randomise(model, 0)
    moved = {}
    for unread in ("skip", "compare"):
        made = otfuse.fuse([model, model], "otfusion-wts", options={"otfusion.unread": unread}, verify=False).model
        moved[unread] = float((made.vit.embeddings.cls_token - model.vit.embeddings.cls_token).detach().norm())
    assert moved["skip"] < 1e-2 < 0.1 < moved["compare"]


def _outputs(result):
    return tuple(value for key, value in result.items() if "logits" in key)
