"""Causal language models."""

from __future__ import annotations

from typing import Any

from otfuse.testing.hugging import text

GPT2: dict[str, Any] = {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32}
GROUPED: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 36,
    "max_position_embeddings": 32,
}
HALF: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 32,
}
LLAMA8, LLAMA4 = "1x24 2x2 2x3/2 2x8/2 2x36", "1x24 2x2 2x3/2 2x4/2 2x36"

EXAMPLES = (
    text("gpt2", "GPT2LMHeadModel", "1x24 2x4 4x6/4 2x96", **GPT2, note="query, key and value in one weight [in, out]"),
    text(
        "bloom", "BloomForCausalLM", "1x24 4x6/4 2x96", hidden_size=24, n_layer=2, n_head=4, note="slopes pin the heads"
    ),
    text(
        "mpt",
        "MptForCausalLM",
        "1x24 4x6/4 2x96",
        d_model=24,
        n_layers=2,
        n_heads=4,
        max_seq_len=32,
        note="slopes pin the heads",
    ),
    text(
        "opt",
        "OPTForCausalLM",
        "1x24 1x10 2x4 4x6/4 2x36",
        hidden_size=24,
        word_embed_proj_dim=10,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=36,
        max_position_embeddings=32,
    ),
    text(
        "codegen",
        "CodeGenForCausalLM",
        "1x32 2x4 2x4/4 2x8/4 2x128",
        rotary="2x2/4",
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=32,
        n_ctx=32,
        rotary_dim=4,
    ),
    text(
        "gptj_interleaved",
        "GPTJForCausalLM",
        "1x24 2x3 2x4/3 2x8/3 2x96",
        rotary="2x2/3",
        n_embd=24,
        n_layer=2,
        n_head=3,
        n_positions=32,
        rotary_dim=4,
        note="pairs are neighbours; half of each head is not rotated",
    ),
    text(
        "neox_perhead_fused",
        "GPTNeoXForCausalLM",
        "1x24 2x3 2x4/3 2x8/3 2x36",
        rotary="2x2/3",
        **HALF,
        intermediate_size=36,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        note="query, key and value lie side by side within each head",
    ),
    text(
        "llama_gqa",
        "LlamaForCausalLM",
        LLAMA8,
        rotary="2x4/2",
        **GROUPED,
        head_dim=8,
        note="key and value heads are shared by three query heads",
    ),
    text(
        "llama_equal",
        "LlamaForCausalLM",
        "1x16 2x4 2x4/4 2x16",
        rotary="2x2/4",
        **(
            GROUPED
            | {
                "hidden_size": 16,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "intermediate_size": 16,
                "vocab_size": 16,
            }
        ),
        note="all widths 16, heads and their units 4",
    ),
    text("mistral", "MistralForCausalLM", LLAMA8, rotary="2x4/2", **GROUPED, head_dim=8, sliding_window=4),
    text("qwen2", "Qwen2ForCausalLM", LLAMA4, rotary="2x2/2", **GROUPED, tie_word_embeddings=True),
    text("qwen3", "Qwen3ForCausalLM", LLAMA8, **GROUPED, head_dim=8, note="queries and keys are normalised"),
    text("phi3_fused", "Phi3ForCausalLM", LLAMA4, rotary="2x2/2", **GROUPED),
    text("starcoder2", "Starcoder2ForCausalLM", LLAMA4, rotary="2x2/2", **GROUPED),
    text(
        "olmo2",
        "Olmo2ForCausalLM",
        LLAMA4,
        **GROUPED,
        note="norms over all heads' queries and keys, norms after the branches",
    ),
    text("gemma", "GemmaForCausalLM", LLAMA8, rotary="2x4/2", **GROUPED, head_dim=8),
    text(
        "gemma3",
        "Gemma3ForCausalLM",
        LLAMA8,
        **GROUPED,
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    ),
    text(
        "mixtral",
        "MixtralForCausalLM",
        "1x24 2x2 2x3/2 2x4/2 2x4 2x36/4",
        rotary="2x2/2",
        **GROUPED,
        num_local_experts=4,
    ),
    text(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        "1x24 2x2 2x3/2 2x8/2 2x4 2x20/4",
        **GROUPED,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=20,
    ),
    text(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        "1x24 2x18 2x10 2x3 2x6/3 2x8/3 1x36 2x20 1x2 1x3/2",
        rotary="2x2",
        hidden_size=24,
        num_hidden_layers=2,
        first_k_dense_replace=1,
        intermediate_size=36,
        num_attention_heads=3,
        num_key_value_heads=3,
        q_lora_rank=18,
        kv_lora_rank=10,
        qk_rope_head_dim=4,
        qk_nope_head_dim=6,
        v_head_dim=8,
        n_routed_experts=6,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        n_shared_experts=1,
        moe_intermediate_size=20,
        max_position_embeddings=32,
        note="queries and keys in two parts, of which one turns; experts in two groups",
    ),
)
