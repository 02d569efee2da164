from __future__ import annotations

from typing import Any

import pytest
from tests.models import tiny_config

from loraprune.checkpoint.exports.checkpoint import BlockWidths, RuntimeFormatError
from loraprune.checkpoint.exports.gguf.architecture import add_metadata, architecture_for, check_family, gguf_context

gguf = pytest.importorskip("gguf", reason="gguf is not installed")

NARROW = BlockWidths(num_attention_heads=4, num_key_value_heads=2, intermediate_size=10)
WIDE = BlockWidths(num_attention_heads=8, num_key_value_heads=4, intermediate_size=24)
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize(
    ("family", "widths", "changes", "name"),
    [
        ("llama", [NARROW, NARROW], {}, "llama"),
        ("llama", [NARROW, WIDE], {}, "deci"),
        ("mistral", [NARROW, NARROW], {}, "llama"),
        ("mistral", [WIDE, NARROW], {}, "deci"),
        ("qwen2", [WIDE, WIDE], {}, "qwen2"),
        ("qwen2", [WIDE, WIDE], {"rope_parameters": LINEAR}, "llama"),
        ("qwen2", [NARROW, NARROW], {}, "llama"),  # llama.cpp's qwen2 knows no head width of its own
        ("qwen2", [NARROW, WIDE], {}, "deci"),
        ("qwen3", [NARROW, NARROW], {}, "qwen3"),
    ],
)
def test_the_architecture_is_one_that_knows_such_widths(
    family: str, widths: list[BlockWidths], changes: dict[str, Any], name: str
) -> None:
    assert architecture_for(family, tiny_config(family, **changes), widths).name == name


@pytest.mark.parametrize(
    ("family", "widths", "changes", "message"),
    [
        ("qwen3", [NARROW, WIDE], {}, "deci, and deci does not normalize queries and keys"),
        ("qwen3", [WIDE, WIDE], {"rope_parameters": LINEAR}, "does not support the scaled rotary embedding"),
        ("llama", [WIDE, WIDE], {"hidden_act": "gelu"}, "activation silu, but this one has gelu"),
        ("qwen2", [WIDE, WIDE], {"rope_parameters": YARN}, "cannot write a rotary embedding of type 'yarn'"),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused_with_what_can(
    family: str, widths: list[BlockWidths], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RuntimeFormatError, match=message) as error:
        architecture_for(family, tiny_config(family, **changes), widths)
    assert "transformers loads" in str(error.value)


def test_other_families_are_refused() -> None:
    with pytest.raises(RuntimeFormatError, match="cannot write a gemma2 model as GGUF; it writes llama"):
        check_family("gemma2")


def test_widths_are_one_number_or_one_for_each_block() -> None:
    config = tiny_config("llama")
    for widths, expected in (
        ([NARROW, NARROW], {"head_count": 4, "head_count_kv": 2, "length": 10}),
        ([NARROW, WIDE], {"head_count": [4, 8], "head_count_kv": [2, 4], "length": [10, 24]}),
    ):
        architecture = architecture_for("llama", config, widths)
        name = architecture.name
        writer = gguf.GGUFWriter(None, name)
        add_metadata(writer, architecture, config, widths)
        values = {key: field.value for key, field in writer.kv_data[0].items()}
        assert values[f"{name}.attention.head_count"] == expected["head_count"]
        assert values[f"{name}.attention.head_count_kv"] == expected["head_count_kv"]
        assert values[f"{name}.feed_forward_length"] == expected["length"]


@pytest.mark.parametrize(("window", "context"), [(None, 64), (32, 32), (4096, 64)])
def test_the_context_ends_where_a_sliding_window_would_begin_to_slide(window: int | None, context: int) -> None:
    assert gguf_context(tiny_config("mistral", sliding_window=window)) == context
