"""Estimates of families and settings whose forward pass asks for more than shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Command

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 100}
FALCON = {"model_type": "falcon", **SIZES}
LLAMA = {
    "model_type": "llama",
    "num_key_value_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 4096,
} | SIZES
MPT = {"model_type": "mpt", "d_model": 64, "n_heads": 8, "n_layers": 2, "vocab_size": 100, "max_seq_len": 96}
SCALED = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 1024},
    "longrope": {
        **{"factor": 4.0, "original_max_position_embeddings": 1024},
        **{"short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    },
}


def planned(run: Command, folder: Path, config: dict[str, Any], *options: str) -> Any:
    """The estimate for a config."""
    (folder / "config.json").write_text(json.dumps(config))
    finished = run("plan", folder / "config.json", "--ratio", "0.5", "--json", *options)
    assert finished.code == 0, finished.err
    return json.loads(finished.out)[0]


@pytest.mark.parametrize(
    "config",
    [
        {"multi_query": True, "new_decoder_architecture": False},
        {"multi_query": False, "new_decoder_architecture": False, "alibi": True, "parallel_attn": False},
        {"new_decoder_architecture": True, "num_kv_heads": 2},
        {"new_decoder_architecture": True, "num_kv_heads": 2, "multi_query": False, "num_ln_in_parallel_attn": 1},
        {"multi_query": True, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    ],
    ids=str,
)
def test_every_falcon_is_estimated_with_fused_attention(run: Command, tmp_path: Path, config: dict[str, Any]) -> None:
    short, long = (
        planned(run, tmp_path, FALCON | config, "--max-length", length)["memory"]["activations"]
        for length in ("256", "1024")
    )
    # One mask of all rows is there, with ALiBi one of numbers for each head; no scores wait in every block.
    mask = 8 * 1024 * 1024 * (8 * 4 if config.get("alibi") else 1)
    assert 4 * short <= long <= 4 * short + mask


@pytest.mark.parametrize("kind", SCALED)
def test_scaled_rotary_positions_change_nothing_in_an_estimate(run: Command, tmp_path: Path, kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 1e4, **SCALED[kind]}
    scaled = planned(run, tmp_path, {**LLAMA, "rope_parameters": rope})
    assert scaled["before"] == planned(run, tmp_path, LLAMA)["before"]


def test_the_context_of_mpt_is_honored(run: Command, tmp_path: Path) -> None:
    assert planned(run, tmp_path, MPT)["settings"]["max_length"] == 96
    finished = run("plan", tmp_path / "config.json", "--max-length", "97")
    assert finished.code == 2
    assert "longer than the model's context of 96" in finished.err
