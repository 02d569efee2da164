from __future__ import annotations

from pathlib import Path

import pytest
from tests.checkpoints import tiny_checkpoint

from loraprune.checkpoint.adapter import find_adapter
from loraprune.checkpoint.names import PRESETS, check_no_preset, expanded
from loraprune.checkpoint.shapes import find_shapes
from loraprune.checkpoint.source import ModelSource
from loraprune.data.demo import demo_model
from loraprune.data.sources import load_source


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_demo_is_the_bundled_model_wherever_a_model_is_named() -> None:
    assert expanded("demo") == str(demo_model())
    assert ModelSource.of("demo").checkpoint == str(demo_model())
    assert ModelSource.of_any("demo").tokenizer.name_or_path == str(demo_model())
    assert find_shapes("demo").config.model_type == "llama"
    assert find_adapter("demo") is None


def test_a_folder_called_demo_wins(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "demo")
    assert ModelSource.of("demo").checkpoint == "demo"


def test_a_preset_is_refused_where_weights_are_needed() -> None:
    for of in (ModelSource.of, ModelSource.of_any):
        with pytest.raises(ValueError, match="llama-2-7b is a preset, the shape of a model"):
            of("llama-2-7b")


def test_a_folder_with_the_name_of_a_preset_wins(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "llama-2-7b")
    check_no_preset("llama-2-7b")
    assert ModelSource.of("llama-2-7b").config.hidden_size == find_shapes("llama-2-7b").config.hidden_size < 4096


def test_no_preset_is_called_as_the_bundled_model() -> None:
    assert "demo" not in PRESETS


def test_the_text_of_the_bundled_model_is_data_by_name(tmp_path: Path) -> None:
    train, held_out = load_source("demo"), load_source("demo", split="validation")
    assert train.column_names == held_out.column_names == ["text"]
    assert train.num_rows > held_out.num_rows > 5
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.txt").write_text("my own text")
    assert load_source("demo")["text"] == ["my own text"]
