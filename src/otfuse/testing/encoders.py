"""Text encoders."""

from __future__ import annotations

from typing import Any

from otfuse.testing.hugging import text

BERT: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 36,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
}
POST = "1x24 2x4 4x6/4 2x36"

EXAMPLES = (
    text("bert", "BertForMaskedLM", POST, **BERT, note="the decoder is tied to the word embedding"),
    text(
        "bert_classifier",
        "BertForSequenceClassification",
        POST + " 1x24",
        **BERT,
        num_labels=5,
        note="the pooler is a space",
    ),
    text(
        "bert_equal",
        "BertForMaskedLM",
        "1x16 2x4 4x4/4 2x16",
        **(BERT | {"hidden_size": 16, "intermediate_size": 16, "max_position_embeddings": 16, "vocab_size": 16}),
        note="stream, inner units, positions and vocabulary are 16; heads and their units are 4",
    ),
    text("roberta", "RobertaForMaskedLM", POST, **BERT, pad_token_id=1, bos_token_id=0),
    text(
        "distilbert",
        "DistilBertForMaskedLM",
        "1x20 2x4 4x5/4 2x28",
        dim=20,
        n_layers=2,
        n_heads=4,
        hidden_dim=28,
        max_position_embeddings=32,
    ),
    text(
        "albert_shared",
        "AlbertForMaskedLM",
        "1x4 2x6/4 1x10 1x24 1x36",
        **BERT,
        embedding_size=10,
        note="one layer used twice",
    ),
    text("electra", "ElectraForMaskedLM", POST + " 1x10", **BERT, embedding_size=10),
    text(
        "rembert", "RemBertForMaskedLM", POST + " 1x10 1x14", **BERT, input_embedding_size=10, output_embedding_size=14
    ),
    text(
        "mpnet",
        "MPNetForMaskedLM",
        "1x24 1x4 4x6/4 2x36",
        **BERT,
        pad_token_id=1,
        note="one position bias for all layers",
    ),
    text(
        "esm",
        "EsmForMaskedLM",
        "1x24 2x4 2x6/4 2x36",
        rotary="2x3/4",
        **BERT,
        position_embedding_type="rotary",
        mask_token_id=4,
        token_dropout=False,
        note="the frequencies are stored",
    ),
    text(
        "roformer",
        "RoFormerForMaskedLM",
        "1x24 2x4 2x6/4 2x36",
        rotary="2x3/4",
        **BERT,
        embedding_size=24,
        note="the sines and cosines are stored",
    ),
    text(
        "modernbert",
        "ModernBertForMaskedLM",
        "1x24 3x3 3x8/3 3x36",
        rotary="3x4/3",
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=36,
        cls_token_id=1,
        sep_token_id=2,
        max_position_embeddings=32,
        note="global and local attention take turns",
    ),
)
