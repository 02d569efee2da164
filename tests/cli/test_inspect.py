from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.checkpoints import byte_model
from tests.cli.conftest import Command
from tests.models import FAMILIES


@pytest.fixture
def only_config(tmp_path: Path) -> Path:
    """A checkpoint without weights and tokenizer."""
    byte_model().config.save_pretrained(tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]
    return tmp_path / "model"


def test_the_text_tells_what_can_be_pruned_from_the_config_alone(
    run: Command, only_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    finished = run("inspect", only_config)
    assert finished.code == 0
    out = " ".join(finished.out.split())
    assert f"{only_config}: llama, 2 layers, hidden size 32, 35.3k parameters" in out
    # One group: 8 rows of q and columns of o, 4 rows of k and v; one channel: a row of gate and up, a column of down.
    assert f"heads one KV head with its 2 query heads 4 {24 * 32}" in out
    assert f"channels one FFN channel 64 {3 * 32}" in out
    assert "KV heads that the config accepts: 1, 2, 4." in out
    assert "rounded to multiples of 1" in out


def test_json_is_the_same_with_every_layer(run: Command, only_config: Path) -> None:
    finished = run("inspect", only_config, "--json")
    assert finished.code == 0
    found = json.loads(finished.out)
    model = byte_model()
    assert found["parameters"] == model.num_parameters()
    assert found["prunable_parameters"] == 2 * (4 * 24 * 32 + 64 * 3 * 32)
    assert found["legal_kv_heads"] == [1, 2, 4]
    assert found["query_heads_per_kv_head"] == 2
    assert (found["model_type"], found["dtype"]) == ("llama", "float32")
    names = [dimension["name"] for dimension in found["dimensions"]]
    assert names == ["layers.0.heads", "layers.0.channels", "layers.1.heads", "layers.1.channels"]
    modules = dict(model.named_modules())
    for dimension in found["dimensions"]:
        assert dimension["consumer"] in dimension["members"]
        assert set(dimension["members"]) <= set(modules)
    assert sum(d["groups"] * d["parameters_per_group"] for d in found["dimensions"]) == found["prunable_parameters"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_understood(run: Command, tmp_path: Path, family: str) -> None:
    byte_model(family).config.save_pretrained(tmp_path)
    assert json.loads(run("inspect", tmp_path, "--json").out)["model_type"] == family


def test_a_large_model_takes_no_memory_for_weights(run: Command, tmp_path: Path) -> None:
    config = byte_model().config
    config.update({"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "head_dim": 128})
    config.update({"num_attention_heads": 64, "num_key_value_heads": 8, "dtype": "bfloat16"})
    config.save_pretrained(tmp_path)
    found = json.loads(run("inspect", tmp_path, "--json").out)
    assert found["parameters"] > 68e9
    assert (found["channel_multiple"], found["dtype"]) == (128, "bfloat16")


def test_an_unknown_family_is_refused_with_those_that_are_supported(run: Command, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    finished = run("inspect", tmp_path)
    assert (finished.code, finished.out) == (2, "")
    assert "'gpt2' are not supported; supported: llama, mistral, qwen2, qwen3." in finished.err


def test_a_missing_folder_and_an_unknown_option_are_refused(run: Command, tmp_path: Path) -> None:
    missing = run("inspect", tmp_path / "missing")
    assert missing.code == 2
    assert f"{tmp_path / 'missing'} is no checkpoint" in missing.err
    unknown = run("inspect", tmp_path, "--jason")
    assert unknown.code == 2
    assert "--jason" in unknown.err
