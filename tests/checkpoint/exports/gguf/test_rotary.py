from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models import tiny_config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError
from loraprune.checkpoint.exports.gguf.architecture import frequency_divisors, is_scaled

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("parameters", [LLAMA3, {"rope_type": "linear", "rope_theta": 5000.0, "factor": 3.0}])
def test_divided_frequencies_are_those_of_the_model(parameters: dict[str, Any]) -> None:
    config = tiny_config(head_dim=16, rope_parameters=parameters)
    divisors = frequency_divisors(config)
    assert divisors is not None
    ordinary = torch.tensor([5000.0 ** (-2 * i / 16) for i in range(8)])
    torch.testing.assert_close(ordinary / divisors, LlamaRotaryEmbedding(config).inv_freq)
    assert (divisors > 1).any()


def test_ordinary_frequencies_need_no_divisors() -> None:
    assert frequency_divisors(tiny_config()) is None


def test_a_rotary_embedding_of_a_part_of_a_head_is_refused() -> None:
    config = tiny_config(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5})
    with pytest.raises(RuntimeFormatError, match="only 50% of a head"):
        is_scaled(config)
