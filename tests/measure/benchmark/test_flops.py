from __future__ import annotations

import pytest
import torch
from tests.models import tiny_model, token_ids
from transformers import MixtralConfig, MixtralForCausalLM

from loraprune.measure.benchmark.flops import countable_attention, flops_of

BATCH, TOKENS = 3, 9


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kv_heads", [8, 4])
def test_a_llama_has_the_operations_of_its_formula(attention: str, kv_heads: int) -> None:
    model = tiny_model(attention=attention, num_key_value_heads=kv_heads)
    config, ids = model.config, token_ids(BATCH, TOKENS)
    hidden, width = config.hidden_size, config.head_dim
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    projections = 2 * hidden * heads * width + 2 * hidden * kv_heads * width + 3 * hidden * config.intermediate_size
    scores_and_sums = 2 * TOKENS * heads * width
    a_token = layers * (projections + scores_and_sums) + hidden * config.vocab_size
    with torch.no_grad():
        found = flops_of(lambda: model(input_ids=ids, use_cache=False))
    # The rotary angles are a matrix product too: one multiply-add for each token and frequency.
    rotary = found - 2 * BATCH * TOKENS * a_token
    assert 0 <= rotary <= 2 * BATCH * TOKENS * width // 2


def test_attention_by_a_kernel_without_a_formula_is_counted_by_another_and_comes_back() -> None:
    model = tiny_model(attention="flex_attention").eval()
    seen: list[str] = []

    def count() -> int:
        with torch.no_grad(), countable_attention(model):
            seen.append(model.config._attn_implementation)
            return flops_of(lambda: model(input_ids=token_ids(BATCH, TOKENS), use_cache=False))

    wanted = tiny_model(attention="sdpa").eval()
    with torch.no_grad():
        assert count() == flops_of(lambda: wanted(input_ids=token_ids(BATCH, TOKENS), use_cache=False))
    assert seen == ["sdpa"]
    assert model.config._attn_implementation == "flex_attention"


def test_every_token_of_a_mixture_goes_through_its_experts() -> None:
    values = {"num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 40, "hidden_size": 32}
    values |= {"intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 4}
    found = []
    for chosen in (1, 2):
        config = MixtralConfig(**values | {"num_experts_per_tok": chosen})
        model = MixtralForCausalLM(config).eval()
        with torch.no_grad():
            found.append(flops_of(lambda model=model: model(input_ids=token_ids(BATCH, TOKENS), use_cache=False)))
    assert found[1] - found[0] == 2 * BATCH * TOKENS * 3 * 32 * 24
