"""Small decoders whose FFNs are mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.zoo.row import Row, base_config
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    MixtralConfig,
    OlmoeConfig,
    PretrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)


def _config(config: type[PretrainedConfig], **changes: Any) -> Callable[[], PretrainedConfig]:
    """Two layers, 8 query heads on 4 KV heads, 4 experts of 32 channels, of which a token takes two.

    Multiplying by all experts at once wants their widths to be multiples of 16 bytes, also the widths that stay.
    """
    values = base_config(
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    return lambda: config(**{**values, **changes})


_QWEN = {"num_experts": 4, "moe_intermediate_size": 32}
_DEEPSEEK = {
    "num_key_value_heads": 8,
    "n_routed_experts": 4,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
    "n_group": 1,
    "topk_group": 1,
}

ROWS = (
    Row(
        name="mixtral",
        config=_config(MixtralConfig, num_local_experts=4, intermediate_size=32),
        kinds=("heads", "expert_channels"),
        others=("query_heads", "experts"),
        stock=("heads", "query_heads", "expert_channels", "experts"),
    ),
    Row(
        name="qwen2_moe",
        config=_config(
            Qwen2MoeConfig, shared_expert_intermediate_size=16, mlp_only_layers=[0], num_hidden_layers=3, **_QWEN
        ),
        kinds=("heads", "channels", "expert_channels", "shared_channels"),
        others=("query_heads", "experts"),
        stock=("heads", "query_heads", "channels", "expert_channels", "shared_channels", "experts"),
    ),
    Row(
        name="qwen3_moe",
        config=_config(Qwen3MoeConfig, head_dim=4, tie_word_embeddings=True, **_QWEN),
        kinds=("heads", "expert_channels"),
        others=("query_heads", "experts"),
        stock=("heads", "query_heads", "expert_channels", "experts"),
    ),
    Row(
        name="olmoe",
        config=_config(OlmoeConfig, num_experts=4, intermediate_size=32),
        kinds=("expert_channels",),
        others=("heads", "query_heads", "experts"),
        stock=("expert_channels", "experts"),
    ),
    Row(
        name="deepseek_v2",
        config=_config(DeepseekV2Config, n_shared_experts=1, topk_method="greedy", **_DEEPSEEK),
        kinds=("channels", "expert_channels"),
        others=("experts",),
        stock=("channels", "expert_channels", "experts"),
    ),
    Row(
        name="deepseek_v3",
        config=_config(DeepseekV3Config, n_shared_experts=2, **_DEEPSEEK),
        kinds=("channels", "expert_channels"),
        others=("experts",),
        stock=("channels", "expert_channels", "experts"),
    ),
)
