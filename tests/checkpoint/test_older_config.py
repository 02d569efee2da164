"""A saved config says what transformers 5 moved under the names of transformers 4, too, and loads as before in 5."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.models import tiny_model
from tests.zoo import ROWS
from transformers import AutoConfig, Gemma3Config, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from loraprune.checkpoint.load import meta_model
from loraprune.checkpoint.older_config import with_older_keys
from loraprune.checkpoint.save import save_checkpoint

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "factor": 2.0}
FACTORS = {"short_factor": [1.0], "long_factor": [2.0]}


@pytest.mark.parametrize(
    ("model_type", "rope", "older"),
    [
        ("llama", {"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5}),
        ("loraprune_llama", {"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5}),
        ("llama", {**LLAMA3, "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
        (
            "stablelm",
            {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.25},
        ),
        (
            "gpt_neox",
            {**LINEAR, "rope_theta": 2e4, "partial_rotary_factor": 0.5},
            {"rotary_emb_base": 2e4, "rotary_pct": 0.5, "rope_scaling": LINEAR},
        ),
        (
            "loraprune_gemma3_text",
            {
                "full_attention": {**LINEAR, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 3e3},
            },
            {"rope_theta": 1e6, "rope_local_base_freq": 3e3, "rope_scaling": LINEAR},
        ),
        (
            "phi3",
            {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32, **FACTORS},
            {"rope_theta": 1e4, "rope_scaling": {"type": "longrope", **FACTORS}},
        ),
        (
            "olmo2",
            {**LINEAR, "rope_theta": 1e4},
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
        ),
    ],
)
def test_rotary_embeddings_are_described_twice(model_type: str, rope: dict[str, Any], older: dict[str, Any]) -> None:
    values = {"model_type": model_type, "rope_parameters": rope}
    assert with_older_keys(values) == {**values, **older}


def test_so_are_dtypes_and_what_was_renamed_and_configs_within_configs() -> None:
    inner = {"model_type": "qwen3_moe", "dtype": "bfloat16", "num_local_experts": 4}
    found = with_older_keys({"model_type": "outer", "dtype": "float16", "text_config": inner})
    assert found["torch_dtype"] == "float16"
    assert found["text_config"] == {**inner, "torch_dtype": "bfloat16", "num_experts": 4}


@pytest.mark.parametrize(("model_type", "scaled"), [("t5", False), ("mt5", None)])
def test_an_output_that_is_not_scaled_is_called_untied_where_the_head_is_another_tensor(
    model_type: str, scaled: bool | None
) -> None:
    values = {"model_type": model_type, "tie_word_embeddings": True, "scale_decoder_outputs": scaled}
    assert with_older_keys(values, own_head=True)["tie_word_embeddings"] is False
    assert with_older_keys(values)["tie_word_embeddings"] is True
    assert with_older_keys(values | {"scale_decoder_outputs": True}, own_head=True)["tie_word_embeddings"] is True


def _read(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = CONFIG_MAPPING[values["model_type"]].from_dict(json.loads(json.dumps(values))).to_dict()
    found.pop("partial_rotary_factor", None)  # Phi-3 keeps it beside the one that it reads
    rope = found.get("rope_parameters") or {}
    rope.pop("type", None)
    return found


@pytest.mark.parametrize("config", [*(row.config for row in ROWS), Gemma3Config], ids=lambda made: None)
def test_in_transformers_5_the_config_is_the_same(config: Any) -> None:
    made: PretrainedConfig = config()
    values = json.loads(made.to_json_string())
    assert len(with_older_keys(values)) >= len(values)
    assert _read(with_older_keys(values)) == _read(values)


def test_a_stock_result_names_no_code_of_its_base(tmp_path: Any) -> None:
    model = tiny_model("llama")
    model.config.auto_map = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    save_checkpoint(tmp_path / "out", model, None, card="", record={})
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "auto_map" not in saved
    assert saved["rope_theta"] == saved["rope_parameters"]["rope_theta"]
    assert meta_model(AutoConfig.from_pretrained(tmp_path / "out")).num_parameters() == model.num_parameters()
