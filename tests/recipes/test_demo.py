"""The bundled model, its text, and the command that shows the main job on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from loraprune.cli.main import main
from loraprune.data.demo import HELD_OUT_MODULES, demo_data, demo_model, library_root, standard_library_text
from loraprune.metrics.perplexity import pack_text, perplexity
from loraprune.pruning.errors import InterruptedRunError
from loraprune.recipes import demo
from loraprune.tasks.options import RunOptions


@pytest.fixture(scope="module")
def texts() -> tuple[list[str], list[str]]:
    return standard_library_text()


def test_held_out_modules_are_not_in_the_training_text(texts: tuple[list[str], list[str]]) -> None:
    train = set(texts[0])
    for module in HELD_OUT_MODULES:
        source = library_root() / f"{module}.py"
        if source.is_file():
            assert source.read_text(encoding="utf-8") not in train
    assert not train & set(texts[1])


def test_demo_data_is_jsonl_of_both_sides(tmp_path: Path, texts: tuple[list[str], list[str]]) -> None:
    for path, expected in zip(demo_data(tmp_path), texts, strict=True):
        assert [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()] == expected


def test_a_python_without_library_sources_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraprune.data.demo.library_root", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no sources of the standard library"):
        standard_library_text()


def test_the_bundled_weights_are_16_bit_safetensors_of_at_most_12_mb() -> None:
    files = sorted(path.name for path in demo_model().iterdir())
    assert [name for name in files if name.endswith((".safetensors", ".bin", ".pt"))] == ["model.safetensors"]
    assert (demo_model() / "model.safetensors").stat().st_size <= 12_000_000
    with safe_open(demo_model() / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_the_bundled_model_is_trained_and_uses_grouped_query_attention(texts: tuple[list[str], list[str]]) -> None:
    model = AutoModelForCausalLM.from_pretrained(demo_model(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    assert 4_000_000 <= model.num_parameters() <= 6_000_000
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    held_out = pack_text(texts[1], tokenizer, 256, max_segments=16)
    torch.manual_seed(0)
    untrained = LlamaForCausalLM(model.config)
    assert perplexity(model, held_out).perplexity < 40
    assert perplexity(untrained, held_out).perplexity > 1000


def test_the_tokenizer_gives_back_any_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    text = "def f(x):\n\n        return 'héllo\t→ 世界'  # 12345\r\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_demo_ends_with_a_table_completions_and_a_report(
    tmp_path: Path,
    texts: tuple[list[str], list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "out"
    few = texts[0][:20], [texts[1][0][:20_000]]
    monkeypatch.setattr("loraprune.data.demo.standard_library_text", lambda: few)
    monkeypatch.setitem(demo._TRAINING, "max_length", 64)
    assert main(["demo", "-o", str(output), "--max-steps", "4"]) == 0
    shown = capsys.readouterr().out
    for words in ("Parameters", "File size", "Held-out perplexity", "Forward pass", "without recovery", "dense"):
        assert words in shown
    assert (output / "report.html").is_file()
    pruned = AutoModelForCausalLM.from_pretrained(output)
    assert (pruned.config.num_attention_heads, pruned.config.num_key_value_heads) == (4, 2)
    assert pruned.config.intermediate_size == 352
    assert pruned.dtype == torch.bfloat16


@pytest.mark.full
def test_the_demo_replaces_its_own_folder_and_takes_a_ratio(tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert main(["demo", "-o", str(output), "--max-steps", "2", "-q"]) == 0
    assert main(["demo", "-o", str(output), "--max-steps", "2", "--ratio", "0.25", "-q"]) == 0
    assert json.loads((output / "pruning.json").read_text())["settings"]["pruning"]["ratio"] == 0.25


def test_the_demo_does_not_replace_a_folder_that_is_not_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert main(["demo", "-o", str(tmp_path)]) == 2
    assert "is not the result of a demo" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_demo_that_is_stopped_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, options: RunOptions, **__: object) -> None:
        assert options.run_dir is not None
        (options.run_dir / "checkpoint-20").mkdir(parents=True)
        raise InterruptedRunError("the same command with --resume goes on")

    monkeypatch.setattr("loraprune.recipes.demo.prune", stop)
    assert main(["demo", "-o", str(tmp_path / "out")]) == 130
    shown = capsys.readouterr().err
    assert "Run the demo again to start over" in shown
    assert "--resume" not in shown
    assert list(tmp_path.iterdir()) == []
