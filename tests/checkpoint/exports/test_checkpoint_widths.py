from __future__ import annotations

from typing import Any

import pytest

from loraprune.checkpoint.exports.checkpoint import BlockWidths, RuntimeFormatError, block_widths

CONFIG = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 100, "num_hidden_layers": 3}


def pruned(**blocks: dict[str, int]) -> dict[str, Any]:
    return {"format": 1, "blocks": {name.replace("_", ".layers."): widths for name, widths in blocks.items()}}


def widths(heads: int, kv_heads: int, channels: int) -> BlockWidths:
    return BlockWidths(num_attention_heads=heads, num_key_value_heads=kv_heads, intermediate_size=channels)


def test_blocks_say_what_differs_from_the_config() -> None:
    blocks = {"num_attention_heads": 4, "num_key_value_heads": 2}
    found = block_widths(CONFIG, pruned(model_0=blocks, model_2={"intermediate_size": 7}))
    assert found == (widths(4, 2, 100), widths(8, 4, 100), widths(8, 4, 7))


def test_without_a_description_all_blocks_are_as_the_config_says() -> None:
    assert block_widths(CONFIG, None) == (widths(8, 4, 100),) * 3
    assert block_widths({**CONFIG, "num_key_value_heads": None}, None) == (widths(8, 8, 100),) * 3


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"format": 2, "blocks": {}}, "format 2, but this version of loraprune reads 1"),
        (pruned(model_3={"intermediate_size": 7}), r"'model\.layers\.3', but the model has 3 blocks"),
        (pruned(model_1={"head_dim": 7}), r"model\.layers\.1 has its own width for 'head_dim'"),
        (pruned(model_1={"intermediate_size": 0}), "intermediate_size = 0; it must be a whole number of 1 or more"),
        (pruned(model_1={"num_attention_heads": 6}), "6 query heads and 4 KV heads"),
    ],
)
def test_a_description_that_cannot_be_followed_is_refused(description: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeFormatError, match=message):
        block_widths(CONFIG, description)
