"""Small decoders: the families with one plain or gated FFN in every block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.zoo.row import Row, base_config
from transformers import (
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    Ministral3Config,
    MinistralConfig,
    MistralConfig,
    MptConfig,
    NemotronConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

Config = type[PretrainedConfig]

GROUPED: dict[str, Any] = {
    "kinds": ("heads", "channels"),
    "others": ("query_heads",),
    "stock": ("heads", "channels", "query_heads"),
}
GROUPED_FFN: dict[str, Any] = {"kinds": ("channels",), "others": ("heads", "query_heads"), "stock": ("channels",)}
FFN: dict[str, Any] = {"kinds": ("channels",), "others": ("heads",), "stock": ("channels",)}
EAGER: dict[str, Any] = {"attentions": ("eager",)}
SLIDING: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}


def _llama_like(config: Config, **changes: Any) -> Callable[[], PretrainedConfig]:
    """Two layers, 8 query heads of width 4 on 4 KV heads, 24 channels."""
    values = base_config(
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    return lambda: config(**{**values, **changes})


def _gpt_like(config: Config, **values: Any) -> Callable[[], PretrainedConfig]:
    return lambda: config(**base_config(**values))


def _longrope() -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "factor": 2.0,
        "short_factor": [1.0, 1.1],
        "long_factor": [1.5, 2.0],
        "original_max_position_embeddings": 32,
    }


LLAMA_LIKE = (
    Row(name="llama", config=_llama_like(LlamaConfig, head_dim=4), **GROUPED),
    Row(
        name="llama with biases, tied",
        config=_llama_like(LlamaConfig, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        **GROUPED,
    ),
    Row(
        name="llama with as many KV heads",
        config=_llama_like(LlamaConfig, num_attention_heads=4),
        **{**GROUPED, "others": ()},
    ),
    Row(name="mistral", config=_llama_like(MistralConfig, head_dim=4, sliding_window=4), **GROUPED),
    Row(name="ministral", config=_llama_like(MinistralConfig, head_dim=4, **SLIDING), **GROUPED),
    Row(
        name="ministral3",
        config=_llama_like(
            Ministral3Config,
            head_dim=4,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "llama_4_scaling_beta": 0.1,
                "original_max_position_embeddings": 4,
            },
        ),
        **GROUPED,
    ),
    Row(name="qwen2", config=_llama_like(Qwen2Config), **GROUPED),
    Row(name="qwen3", config=_llama_like(Qwen3Config, head_dim=4, tie_word_embeddings=True), **GROUPED),
    Row(name="gemma", config=_llama_like(GemmaConfig, head_dim=4, tie_word_embeddings=True), **GROUPED),
    Row(name="gemma with biases", config=_llama_like(GemmaConfig, head_dim=6, attention_bias=True), **GROUPED),
    Row(
        name="gemma2",
        config=_llama_like(Gemma2Config, head_dim=4, query_pre_attn_scalar=5, tie_word_embeddings=True, **SLIDING),
        **GROUPED,
        **EAGER,  # soft-capped scores
    ),
    Row(
        name="gemma3_text",
        config=_llama_like(Gemma3TextConfig, head_dim=4, query_pre_attn_scalar=5, **SLIDING),
        **GROUPED,
    ),
    Row(
        name="smollm3",
        config=_llama_like(SmolLM3Config, no_rope_layers=[1, 0], tie_word_embeddings=True),
        **GROUPED,
    ),
    Row(
        name="smollm3 with biases",
        config=_llama_like(SmolLM3Config, no_rope_layers=[1, 0], attention_bias=True, mlp_bias=True),
        **GROUPED,
    ),
    Row(name="olmo2", config=_llama_like(Olmo2Config), **GROUPED),
    Row(name="olmo2 with biases", config=_llama_like(Olmo2Config, attention_bias=True), **GROUPED),
    Row(
        name="granite",
        config=_llama_like(
            GraniteConfig,
            attention_bias=True,
            mlp_bias=True,
            attention_multiplier=0.3,
            residual_multiplier=0.5,
            embedding_multiplier=2.0,
            logits_scaling=2.0,
        ),
        **GROUPED,
    ),
    Row(name="cohere", config=_llama_like(CohereConfig, tie_word_embeddings=True), **GROUPED),
    Row(name="cohere with norms", config=_llama_like(CohereConfig, use_qk_norm=True, attention_bias=True), **GROUPED),
    Row(name="nemotron", config=_llama_like(NemotronConfig, attention_bias=True, mlp_bias=True), **GROUPED),
    Row(name="starcoder2", config=_llama_like(Starcoder2Config, tie_word_embeddings=True), **GROUPED),
    Row(name="starcoder2 without biases", config=_llama_like(Starcoder2Config, use_bias=False), **GROUPED),
    Row(name="phi", config=_llama_like(PhiConfig), **GROUPED),
    Row(name="phi with norms", config=_llama_like(PhiConfig, qk_layernorm=True), **GROUPED_FFN),
    Row(name="phi3", config=_llama_like(Phi3Config), **GROUPED),
    Row(name="phi3 with long rope", config=_llama_like(Phi3Config, rope_parameters=_longrope()), **GROUPED_FFN),
    Row(name="stablelm", config=_llama_like(StableLmConfig, partial_rotary_factor=0.5), **GROUPED_FFN),
    Row(
        name="stablelm with norms",
        config=_llama_like(
            StableLmConfig,
            partial_rotary_factor=0.5,
            qk_layernorm=True,
            use_qkv_bias=True,
            use_parallel_residual=True,
        ),
        **GROUPED_FFN,
    ),
)

_OPT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
_NEOX = {**_OPT, "intermediate_size": 24}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_NEO = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "max_position_embeddings": 64,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 4,
}
_FALCON = {**_OPT, "ffn_hidden_size": 24}

GPT_LIKE = (
    Row(name="opt", config=_gpt_like(OPTConfig, ffn_dim=24, **_OPT), **FFN),
    Row(
        name="opt with norms behind, without biases",
        config=_gpt_like(
            OPTConfig, ffn_dim=24, do_layer_norm_before=False, enable_bias=False, word_embed_proj_dim=16, **_OPT
        ),
        **FFN,
    ),
    Row(name="gpt2", config=_gpt_like(GPT2Config, **_GPT), **FFN),
    Row(
        name="gpt2, untied",
        config=_gpt_like(
            GPT2Config, n_inner=24, tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True, **_GPT
        ),
        **FFN,
    ),
    Row(name="gpt_neo", config=_gpt_like(GPTNeoConfig, **_NEO), **FFN, **EAGER),
    Row(name="gptj", config=_gpt_like(GPTJConfig, rotary_dim=4, **_GPT), **FFN, **EAGER),
    Row(
        name="gptj, tied",
        config=_gpt_like(GPTJConfig, rotary_dim=8, n_inner=24, tie_word_embeddings=True, **_GPT),
        **FFN,
        **EAGER,
    ),
    Row(name="gpt_neox", config=_gpt_like(GPTNeoXConfig, tie_word_embeddings=True, **_NEOX), **FFN),
    Row(
        name="gpt_neox in sequence, without biases",
        config=_gpt_like(GPTNeoXConfig, use_parallel_residual=False, attention_bias=False, **_NEOX),
        **FFN,
    ),
    Row(
        name="falcon with one KV head",
        config=_gpt_like(FalconConfig, **_FALCON),
        kinds=("channels",),
        others=("query_heads",),
        stock=("channels",),
    ),
    Row(
        name="falcon with one KV head and biases, in sequence",
        config=_gpt_like(FalconConfig, parallel_attn=False, bias=True, tie_word_embeddings=False, **_FALCON),
        kinds=("channels",),
        others=("query_heads",),
        stock=("channels",),
    ),
    Row(
        name="falcon with all KV heads", config=_gpt_like(FalconConfig, multi_query=False, bias=True, **_FALCON), **FFN
    ),
    Row(
        name="falcon, new",
        config=_gpt_like(
            FalconConfig, **{**_FALCON, "num_attention_heads": 8}, num_kv_heads=4, new_decoder_architecture=True
        ),
        **FFN,
    ),
    Row(
        name="falcon with alibi",
        config=_gpt_like(FalconConfig, multi_query=False, alibi=True, **_FALCON),
        kinds=("channels",),
        stock=("channels",),
    ),
    Row(
        name="bloom",
        config=_gpt_like(BloomConfig, hidden_size=32, n_layer=2, n_head=4),
        kinds=("channels",),
        others=("heads",),
        **EAGER,
    ),
    Row(
        name="bloom with six heads",
        config=_gpt_like(BloomConfig, hidden_size=24, n_layer=2, n_head=6, tie_word_embeddings=False),
        kinds=("channels",),
        **EAGER,
    ),
    Row(
        name="mpt",
        config=_gpt_like(MptConfig, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
        kinds=("channels",),
        others=("heads",),
        **EAGER,
    ),
    Row(
        name="mpt with six heads",
        config=_gpt_like(
            MptConfig, d_model=24, n_layers=2, n_heads=6, max_seq_len=64, attn_config={"clip_qkv": 0.5, "alibi": True}
        ),
        kinds=("channels",),
        **EAGER,
    ),
)

ROWS = (*LLAMA_LIKE, *GPT_LIKE)
