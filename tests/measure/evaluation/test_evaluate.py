from __future__ import annotations

import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tests.checkpoint.adapters import plain_adapter
from tests.checkpoints import byte_model, sentences, tiny_checkpoint, tiny_tokenizer
from tests.tasks.models import byte_tokenizer, opinions, reversals, tiny_bert, tiny_t5, word_tokenizer

from loraprune import EvaluationConfig, evaluate
from loraprune.checkpoint.load import CheckpointError
from loraprune.checkpoint.source import ModelSource
from loraprune.measure.evaluation.results import KINDS, Results, ResultsError, read_results
from loraprune.metrics.completions import DEFAULT_PROMPTS
from loraprune.metrics.text_perplexity import text_perplexity
from loraprune.metrics.texts import find_texts, read_text
from loraprune.metrics.windows import cut_into_windows


@pytest.fixture(scope="session")
def notes(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("texts") / "notes.txt"
    path.write_text("\n".join(sentences(30)))
    return str(path)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models whose weights were loaded."""
    names: list[str] = []
    load = ModelSource.load

    def noting(source: ModelSource, *settings: Any) -> Any:
        names.append(source.name)
        return load(source, *settings)

    monkeypatch.setattr(ModelSource, "load", noting)
    return names


def saved(folder: Path, rows: Dataset) -> str:
    path = folder / "rows.jsonl"
    rows.to_json(path)
    return str(path)


class TestFigures:
    def test_an_entry_says_everything_that_its_figure_depends_on(self, checkpoint: Path, notes: str) -> None:
        (entry,) = evaluate(checkpoint, EvaluationConfig(ppl=(notes,), max_length=32)).entries
        assert (entry.model, entry.kind, entry.label) == (str(checkpoint), "perplexity", "notes.txt@32")
        assert entry.settings == {
            "max_length": 32,
            "stride": None,
            "limit": None,
            "dtype": "float32",
            "device": "cpu",
        }
        assert entry.data["sha256"]
        assert entry.fingerprint.startswith("sha256:")
        assert entry.parameters == byte_model().num_parameters()
        assert {"torch", "transformers", "loraprune"} <= set(entry.versions)
        assert entry.machine["cpus"]
        assert entry.created
        assert entry.seconds is not None

    def test_the_perplexity_is_that_of_the_model_on_the_text(self, checkpoint: Path, notes: str) -> None:
        (entry,) = evaluate(checkpoint, EvaluationConfig(ppl=(notes,), max_length=32, stride=8, limit=5)).entries
        text = read_text(find_texts([notes])[0])
        windows = cut_into_windows(text, tiny_tokenizer(), length=32, stride=8, limit=5)
        assert entry.values["perplexity"] == pytest.approx(text_perplexity(byte_model(), windows).perplexity, rel=1e-6)
        assert entry.label == "notes.txt@32/8, first 5"

    @pytest.mark.parametrize(
        ("adds", "bos", "expected"),
        [
            ("$A", "auto", {}),
            ("$A", "never", {}),
            ("$A", "always", {"bos": True}),
            ("<s> $A", "auto", {}),
            ("<s> $A", "always", {"bos": True}),
            ("<s> $A", "never", {"bos": False}),
            ("<s> $A </s>", "auto", {"end": "left out"}),
            ("$A </s>", "auto", {"end": "left out"}),
        ],
    )
    def test_what_a_tokenizer_adds_is_among_the_settings(
        self, tmp_path: Path, notes: str, adds: str, bos: str, expected: dict[str, Any]
    ) -> None:
        folder = tiny_checkpoint(tmp_path / "model", tokenizer=tiny_tokenizer(adds=adds))
        config = EvaluationConfig(ppl=(notes,), prompts=("the old",), max_length=32, limit=2, max_new_tokens=2, bos=bos)
        text, prompts = evaluate(folder, config).entries
        assert {name: text.settings[name] for name in ("bos", "end") if name in text.settings} == expected
        windows = cut_into_windows(
            read_text(find_texts([notes])[0]), tiny_tokenizer(adds=adds), length=32, limit=2, bos=bos
        )
        assert text.values["perplexity"] == pytest.approx(text_perplexity(byte_model(), windows).perplexity, rel=1e-6)
        ended = {"end": "left out"} if "end" in expected else {}
        assert {name: prompts.settings[name] for name in ("bos", "end") if name in prompts.settings} == ended

    def test_figures_of_an_older_way_to_encode_are_not_taken_again(self, tmp_path: Path, notes: str) -> None:
        folder = tiny_checkpoint(tmp_path / "model", tokenizer=tiny_tokenizer(adds="<s> $A </s>"))
        config = EvaluationConfig(ppl=(notes,), max_length=32, limit=2, output=tmp_path / "results.json")
        first = evaluate(folder, config)
        old = [replace(entry, settings={k: v for k, v in entry.settings.items() if k not in ("bos", "end")},
                       values={"perplexity": 1.0}) for entry in first.entries]  # fmt: skip
        (tmp_path / "results.json").write_text(Results(tuple(old)).to_text())
        assert evaluate(folder, config).entries[0].values == first.entries[0].values

    def test_segments_are_as_long_as_the_smallest_context_of_the_models(
        self, checkpoint: Path, tmp_path: Path, notes: str
    ) -> None:
        short = tiny_checkpoint(tmp_path / "short", max_position_embeddings=40)
        results = evaluate([checkpoint, short], EvaluationConfig(ppl=(notes,)))
        assert [entry.settings["max_length"] for entry in results.entries] == [40, 40]

    def test_everything_is_measured_of_every_model_in_the_order_that_was_asked_for(
        self, checkpoint: Path, tmp_path: Path, notes: str
    ) -> None:
        plain_adapter(tmp_path / "adapter", checkpoint)
        config = EvaluationConfig(ppl=(notes,), prompts=("the old",), max_new_tokens=3, limit=4)
        results = evaluate([checkpoint, tmp_path / "adapter"], config)
        kinds = ["perplexity", "completions"]
        assert [(Path(entry.model).name, entry.kind) for entry in results.entries] == [
            *(("tiny-llama", kind) for kind in kinds),
            *(("adapter", kind) for kind in kinds),
        ]
        assert set(kinds) <= set(KINDS)
        assert [pair["prompt"] for pair in results.entries[1].values["completions"]] == ["the old"]
        assert results.entries[0].values["perplexity"] != results.entries[2].values["perplexity"]

    def test_without_prompts_of_the_users_ours_are_gone_on_with(self, checkpoint: Path) -> None:
        (entry,) = evaluate(checkpoint, EvaluationConfig(prompts=(), max_new_tokens=2)).entries
        assert [pair["prompt"] for pair in entry.values["completions"]] == list(DEFAULT_PROMPTS)

    def test_drawn_completions_are_those_of_their_seed(self, checkpoint: Path) -> None:
        def texts(seed: int) -> Any:
            config = EvaluationConfig(prompts=("the old",), sample=True, top_p=0.9, seed=seed, max_new_tokens=12)
            (entry,) = evaluate(checkpoint, config).entries
            assert (entry.settings["seed"], entry.settings["top_p"]) == (seed, 0.9)
            return entry.values["completions"]

        assert texts(1) == texts(1) != texts(2)

    def test_classifiers_are_measured_by_accuracy(self, tmp_path: Path) -> None:
        tiny_bert().save_pretrained(tmp_path / "bert")
        word_tokenizer().save_pretrained(tmp_path / "bert")
        rows = saved(tmp_path, opinions(50))
        progress: list[tuple[str, int, int]] = []
        (entry,) = evaluate(
            tmp_path / "bert",
            EvaluationConfig(data=rows),
            progress=lambda what, done, total: progress.append((what, done, total)),
        ).entries
        assert (entry.kind, entry.name, entry.values["num_examples"]) == ("accuracy", "rows.jsonl", 50)
        assert 0.0 <= entry.values["accuracy"] <= 1.0
        assert progress == [("rows.jsonl texts", 32, 50), ("rows.jsonl texts", 50, 50)]
        (first,) = evaluate(tmp_path / "bert", EvaluationConfig(data=rows, limit=7)).entries
        assert (first.values["num_examples"], first.label) == (7, "rows.jsonl, first 7")

    def test_encoder_decoder_models_are_measured_by_loss_and_exact_matches(self, tmp_path: Path) -> None:
        tiny_t5().save_pretrained(tmp_path / "t5")
        byte_tokenizer().save_pretrained(tmp_path / "t5")
        config = EvaluationConfig(data=saved(tmp_path, reversals(6)))
        (entry,) = evaluate(tmp_path / "t5", config).entries
        assert (entry.kind, entry.values["num_generated"]) == ("targets", 6)
        assert entry.values["perplexity"] == pytest.approx(math.exp(entry.values["loss"]))

    def test_where_nothing_is_asked_for_it_is_wikitext2(
        self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        import datasets

        rows = Dataset.from_dict({"text": sentences(10)})
        monkeypatch.setattr(datasets, "load_dataset", lambda **arguments: rows)
        with caplog.at_level(logging.INFO, logger="loraprune"):
            (entry,) = evaluate(str(checkpoint)).entries
        assert entry.label == "wikitext2@64"
        assert "Without options, perplexity is measured on wikitext2" in caplog.text


class TestResultsFile:
    def test_what_is_there_is_not_measured_again(
        self, checkpoint: Path, notes: str, tmp_path: Path, loads: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        config = EvaluationConfig(ppl=(notes,), max_length=32, output=tmp_path / "e.json")
        first = evaluate(checkpoint, config)
        with caplog.at_level(logging.INFO, logger="loraprune"):
            again = evaluate(checkpoint, config)
        assert again == first
        assert len(loads) == 1
        assert f"notes.txt@32 is in {tmp_path / 'e.json'}, from {first.entries[0].created}" in caplog.text

    def test_it_is_measured_again_by_force_or_with_other_settings_and_the_rest_stays(
        self, checkpoint: Path, notes: str, tmp_path: Path, loads: list[str]
    ) -> None:
        file = tmp_path / "e.json"
        evaluate(checkpoint, EvaluationConfig(ppl=(notes,), max_length=32, output=file))
        evaluate(checkpoint, EvaluationConfig(ppl=(notes,), max_length=24, output=file))
        evaluate(checkpoint, EvaluationConfig(ppl=(notes,), max_length=24, output=file, force=True))
        assert len(loads) == 3
        assert [entry.settings["max_length"] for entry in read_results(file).entries] == [32, 24]

    def test_a_copy_of_a_model_takes_its_figures_under_its_own_name(
        self, checkpoint: Path, notes: str, tmp_path: Path, loads: list[str]
    ) -> None:
        config = EvaluationConfig(ppl=(notes,), max_length=32, output=tmp_path / "e.json")
        copy = shutil.copytree(checkpoint, tmp_path / "copy")
        first, second = evaluate([checkpoint, copy], config).entries
        assert (first.model, second.model) == (str(checkpoint), str(copy))
        assert first.values == second.values
        assert loads == [str(checkpoint)]

    def test_a_place_that_cannot_be_written_to_is_told_first(
        self, checkpoint: Path, notes: str, tmp_path: Path, loads: list[str]
    ) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match=r"The output .*file/e\.json cannot be written"):
            evaluate(checkpoint, EvaluationConfig(ppl=(notes,), output=tmp_path / "file" / "e.json"))
        assert not loads

    def test_a_model_that_changed_is_measured_again(
        self, checkpoint: Path, notes: str, tmp_path: Path, loads: list[str]
    ) -> None:
        config = EvaluationConfig(ppl=(notes,), max_length=32, output=tmp_path / "e.json")
        folder = tiny_checkpoint(tmp_path / "model")
        (before,) = evaluate(folder, config).entries
        byte_model(seed=1).save_pretrained(folder)
        (after,) = evaluate(folder, config).entries
        assert len(loads) == 2
        assert before.values != after.values

    def test_figures_are_written_one_by_one(
        self, checkpoint: Path, notes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*given: Any, **options: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("loraprune.measure.evaluation.kinds.complete_prompts", fail)
        config = EvaluationConfig(ppl=(notes,), prompts=(), max_length=32, output=tmp_path / "new" / "e.json")
        with pytest.raises(KeyboardInterrupt):
            evaluate(checkpoint, config)
        assert [entry.kind for entry in read_results(tmp_path / "new" / "e.json").entries] == ["perplexity"]

    def test_a_file_of_another_version_is_never_overwritten(
        self, checkpoint: Path, notes: str, tmp_path: Path, loads: list[str]
    ) -> None:
        file = tmp_path / "e.json"
        file.write_text(text := '{"format": "loraprune-evaluation", "version": 99, "entries": []}')
        for force in (False, True):
            with pytest.raises(ResultsError, match=r"has version 99"):
                evaluate(checkpoint, EvaluationConfig(ppl=(notes,), output=file, force=force))
        assert file.read_text() == text
        assert not loads


class TestWrong:
    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"max_length": 65}, ValueError, "--max-length is 65, and .* reads 64 tokens at most"),
            ({"stride": 64}, ValueError, "--stride is 64, and segments have 64 tokens"),
            ({"ppl": ("wikitext",)}, ValueError, "Did you mean 'wikitext2'"),
            ({"tasks": ("nowhere.jsonl",)}, ValueError, "nowhere.jsonl"),
            ({"prompts": ("nowhere.txt",)}, ValueError, "nowhere.txt"),
            ({"data": "rows.jsonl"}, ValueError, "--data is for classifiers .* is made for causal-lm.*--ppl"),
            ({"base": "./base"}, CheckpointError, "is not an adapter. Leave it out"),
            ({"device": "cuda:77"}, ValueError, "There is no device 'cuda:77'"),
            ({"top_p": 1.5, "sample": True, "prompts": ()}, ValueError, "--top-p"),
        ],
        ids=str,
    )
    def test_what_is_wrong_is_told_before_any_weights_are_loaded(
        self, checkpoint: Path, notes: str, loads: list[str], changes: Any, error: Any, message: str
    ) -> None:
        config = EvaluationConfig(**{"ppl": (notes,), **changes})
        with pytest.raises(error, match=message):
            evaluate(checkpoint, config)
        assert not loads

    def test_so_is_a_wrong_model_behind_a_right_one(self, checkpoint: Path, notes: str, loads: list[str]) -> None:
        with pytest.raises(CheckpointError, match=r"./nowhere is not a checkpoint"):
            evaluate([checkpoint, "./nowhere"], EvaluationConfig(ppl=(notes,)))
        assert not loads

    def test_so_is_a_text_that_is_too_short_for_one_of_the_models(
        self, checkpoint: Path, tmp_path: Path, loads: list[str]
    ) -> None:
        (tmp_path / "short.txt").write_text("a few words")
        with pytest.raises(ValueError, match=r"'short.txt' has 11 tokens .*less than one segment of 64.*--max-length"):
            evaluate(checkpoint, EvaluationConfig(ppl=(str(tmp_path / "short.txt"),)))
        assert not loads

    def test_so_are_tokens_that_the_model_does_not_know(self, tmp_path: Path, notes: str) -> None:
        folder = tiny_checkpoint(tmp_path / "model", vocab_size=257)
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["river"])
        tokenizer.save_pretrained(folder)
        with pytest.raises(CheckpointError, match=r"it has 261 tokens, and the model knows 257"):
            evaluate(folder, EvaluationConfig(ppl=(notes,)))
        fitting = tiny_checkpoint(tmp_path / "fitting", tokenizer=tokenizer)
        with pytest.raises(ValueError, match=r"has token 261, and the model knows 261"):
            evaluate(fitting, EvaluationConfig(ppl=(notes,)))

    def test_models_of_other_kinds_are_not_measured_together(
        self, checkpoint: Path, tmp_path: Path, notes: str
    ) -> None:
        tiny_bert().save_pretrained(tmp_path / "bert")
        word_tokenizer().save_pretrained(tmp_path / "bert")
        with pytest.raises(
            ValueError, match=r"--ppl is for causal-lm models, and .*bert is made for text-classification"
        ):
            evaluate([checkpoint, tmp_path / "bert"], EvaluationConfig(ppl=(notes,)))
        with pytest.raises(ValueError, match=r"--ppl is for causal-lm models"):  # and the hub is not asked for the text
            evaluate(tmp_path / "bert", EvaluationConfig(ppl=("wikitext2",)))
        with pytest.raises(ValueError, match=r"Name the data to measure it on with --data DATA"):
            evaluate(tmp_path / "bert")
        with pytest.raises(ValueError, match=r"The model is missing"):
            evaluate([])


class TestConfig:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"max_length": 1}, "max_length is 1; it must be at least 2"),
            ({"stride": 0}, "stride is 0; it must be at least 1"),
            ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
            ({"limit": 0}, "limit is 0; it must be at least 1"),
            ({"num_fewshot": -1}, "num_fewshot is -1; it must be at least 0"),
            ({"max_length": 8, "stride": 8}, "--stride is 8, and --max-length is 8; the stride must be below"),
            ({"dtype": "half"}, "dtype is 'half'; choose one of float32"),
            ({"temperature": 0.5}, "--temperature is for sampled completions. Add --sample"),
            ({"output": "."}, "The output . is a folder"),
        ],
        ids=str,
    )
    def test_a_wrong_value_is_refused_with_the_way_out(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            EvaluationConfig(**values)

    def test_one_text_in_place_of_several_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"ppl is 'c4'; give a tuple of texts, such as \('c4',\)"):
            EvaluationConfig(ppl="c4")  # type: ignore[arg-type]
