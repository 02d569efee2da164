from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoint.adapters import plain_adapter, rewrite
from tests.checkpoints import sentences, tiny_checkpoint
from tests.cli.conftest import Command


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text("\n".join(sentences(30)))
    return path


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


def entries(file: str = "evaluation.json") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path(file).read_text())["entries"]
    return found


class TestRight:
    def test_models_are_compared_with_the_first_and_kept_in_a_file(
        self, run: Command, checkpoint: Path, notes: Path
    ) -> None:
        plain_adapter(Path("out") / "adapter", checkpoint)
        finished = run("eval", checkpoint, "out/adapter", "--ppl", notes, "--max-length", "32", "--limit", "9")
        assert finished.code == 0, finished.err
        lines = [line.split() for line in finished.out.splitlines() if line.strip()]
        assert lines[0] == ["tiny-llama", "out/adapter"]
        first, second = (entry["values"]["perplexity"] for entry in entries())
        (row,) = (line for line in lines if line[0] == "notes.txt@32,")
        assert row[:3] == ["notes.txt@32,", "first", "9"]
        assert [float(row[3].replace(",", "")), float(row[4].replace(",", ""))] == pytest.approx(
            [first, second], rel=1e-3
        )
        assert row[5].startswith("×")
        assert "279 tokens in 9 segments" in finished.out
        assert finished.out.rstrip().endswith("Results: evaluation.json")
        assert "Loading out/adapter" in finished.err

    def test_segments_begin_as_asked_for(self, run: Command, checkpoint: Path, notes: Path) -> None:
        options = ["eval", checkpoint, "--ppl", notes, "--max-length", "32", "--limit", "2"]
        for bos in ("auto", "always", "never", "always"):
            assert run(*options, "--bos", bos).code == 0
        assert [entry["settings"].get("bos") for entry in entries()] == [None, True]
        refused = run(*options, "--bos", "sometimes")
        assert refused.code != 0
        assert "bos is 'sometimes'; choose one of auto, always, never" in refused.err

    def test_a_second_run_says_what_it_takes_from_the_file(self, run: Command, checkpoint: Path, notes: Path) -> None:
        options = ["eval", checkpoint, "--ppl", notes, "-o", "mine.json"]
        first, second, forced = run(*options), run(*options), run(*options, "--force")
        assert first.out == second.out == forced.out
        assert f"{checkpoint}: notes.txt@64 is in mine.json, from 2" in second.err
        assert "Loading" not in second.err
        assert "Loading" in forced.err
        assert len(entries("mine.json")) == 1

    def test_quiet_prints_results_alone(self, run: Command, checkpoint: Path, notes: Path) -> None:
        finished = run("eval", checkpoint, "--ppl", notes, "-q")
        assert (finished.code, finished.err) == (0, "")
        assert "notes.txt@64" in finished.out

    def test_progress_comes_with_rates(self, run: Command, checkpoint: Path, notes: Path) -> None:
        finished = run("eval", checkpoint, "--ppl", notes, "--batch-size", "2")
        assert "notes.txt@64 tokens 256/1024" in finished.err
        assert "/s  0:00 left" in finished.err

    def test_models_with_other_tokens_are_not_compared_token_by_token(
        self, run: Command, checkpoint: Path, notes: Path
    ) -> None:
        tiny_checkpoint(Path("model"))
        tokenizer = json.loads(Path("model/tokenizer.json").read_text())
        tokenizer["model"]["merges"] = [["t", "h"]]
        del tokenizer["model"]["vocab"]["~"]
        tokenizer["model"]["vocab"]["th"] = 93
        Path("model/tokenizer.json").write_text(json.dumps(tokenizer))
        finished = run("eval", checkpoint, "model", "--ppl", notes)
        assert finished.code == 0, finished.err
        assert "differently: compare perplexity per word or bits per byte" in " ".join(finished.out.split())
        (row,) = (line for line in finished.out.splitlines() if line.strip().startswith("notes.txt@64"))
        assert "×" not in row
        (row,) = (line for line in finished.out.splitlines() if "per byte  " in line)
        assert "×" in row

    def test_help_is_instant_and_shows_every_option(self, run: Command) -> None:
        finished = run("eval", "--help")
        assert finished.code == 0
        for option in ("--ppl", "--tasks", "--prompts", "--data", "--stride", "--base", "--force", "--num-fewshot"):
            assert option in finished.out


class TestWrong:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--pppl", "x"], "unrecognized arguments: --pppl x; did you mean --ppl? (loraprune eval --help lists"),
            (["--ppl"], "--ppl needs a value"),
            (["--ppl", "wikitext"], "Did you mean 'wikitext2'?"),
            (["--ppl", "."], ". is a folder, not a text. If it is a model, name it before the options."),
            (["--batch-size", "few"], "--batch-size: 'few' is neither auto nor a number"),
            (["--top-p", "0.5"], "--top-p is for sampled completions. Add --sample, or leave it out."),
        ],
        ids=" ".join,
    )
    def test_a_wrong_option_is_one_line_and_nothing_is_written(
        self, run: Command, checkpoint: Path, options: list[str], message: str
    ) -> None:
        finished = run("eval", checkpoint, *options)
        assert (finished.code, finished.out) == (2, "")
        assert finished.err.startswith("error: ")
        assert message in finished.err
        assert len(finished.err.splitlines()) == 1
        assert not Path("evaluation.json").exists()

    def test_models_come_first(self, run: Command, checkpoint: Path) -> None:
        finished = run("eval", "--ppl", "wikitext2", checkpoint)
        assert finished.code == 2
        assert "The model is missing. Name models before the options" in finished.err

    def test_without_anything_the_usage_is_shown(self, run: Command) -> None:
        finished = run("eval")
        assert finished.code == 2
        assert "usage: loraprune eval MODEL..." in finished.err

    def test_an_adapter_whose_base_is_missing_is_never_scored(
        self, run: Command, checkpoint: Path, notes: Path
    ) -> None:
        plain_adapter(Path("adapter"), checkpoint)
        rewrite(Path("adapter"), base_model_name_or_path="./gone")
        finished = run("eval", "adapter", "--ppl", notes)
        assert (finished.code, finished.out) == (2, "")
        assert "adapter is an adapter, but its base ./gone cannot be read" in finished.err
        assert run("eval", "adapter", "--base", checkpoint, "--ppl", notes).code == 0

    def test_a_file_that_is_no_results_is_left_alone(self, run: Command, checkpoint: Path, notes: Path) -> None:
        before = notes.read_text()
        finished = run("eval", checkpoint, "--ppl", notes, "-o", notes)
        assert finished.code == 2
        assert "cannot be read as results of loraprune eval" in finished.err
        assert notes.read_text() == before
