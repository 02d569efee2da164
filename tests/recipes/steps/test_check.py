from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.checkpoints import CONTEXT, sentences, tiny_tokenizer, write_jsonl, write_texts
from tests.finished_run import CONFIG, QUICK
from tests.models import RECOMPUTATION
from tests.tasks.models import reversals, tiny_t5

from loraprune import PruningConfig, RunOptions, prune
from loraprune.checkpoint import save as export
from loraprune.recipes.steps.check import prepare
from loraprune.recipes.steps.prepared import PreparedTraining, RunInputs


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty rows, no two alike."""
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    return write_jsonl(path, ({"prompt": text[:8], "completion": text[8:]} for text in sentences(60)))


def prepared_run(
    model: Any, data: Any, *, run_dir: Path = Path("unused"), config: Any = CONFIG, **changes: Any
) -> PreparedTraining:
    training = {**QUICK, "max_length": CONTEXT, **changes.pop("training", {})}
    return prepare(model, data, config, RunInputs(training=training, options=RunOptions(**changes)), run_dir)


def held_out_texts(prepared: PreparedTraining) -> list[str]:
    assert prepared.held_out is not None
    return [prepared.tokenizer.decode(ids) for ids, _ in prepared.held_out.sequences]


def trained_texts(prepared: PreparedTraining) -> list[str]:
    return [prepared.tokenizer.decode(row) for row in prepared.train_rows["input_ids"]]


@pytest.mark.parametrize(("bos", "begins"), [("auto", False), ("always", True), ("never", False)])
def test_all_rows_begin_as_asked_for(checkpoint: Path, data: Path, bos: str, begins: bool) -> None:
    prepared = prepared_run(checkpoint, data, bos=bos)
    texts = [*trained_texts(prepared), *held_out_texts(prepared)]
    assert {text.startswith("<s>") for text in texts} == {begins}
    assert {len(ids) for ids, _ in prepared.held_out.sequences} == {CONTEXT}


def test_what_rows_begin_with_is_for_causal_language_models() -> None:
    with pytest.raises(ValueError, match=r"--bos is for causal language models, and .* is text-to-text"):
        prepared_run(tiny_t5(), reversals(20), bos="always")


class TestHeldOut:
    def test_a_twentieth_is_held_out_and_not_trained_on(self, checkpoint: Path, questions: Path) -> None:
        prepared = prepared_run(checkpoint, questions)
        held_out, trained = held_out_texts(prepared), trained_texts(prepared)
        assert (len(held_out), len(trained)) == (3, 57)
        assert set(held_out).isdisjoint(trained)
        whole = [text + "</s>" for text in sentences(60)]
        assert sorted([*held_out, *trained]) == sorted(whole)

    def test_no_more_is_held_out_than_is_measured(self, checkpoint: Path, questions: Path) -> None:
        prepared = prepared_run(checkpoint, questions, eval_sequences=2)
        assert (len(held_out_texts(prepared)), len(trained_texts(prepared))) == (2, 58)

    def test_another_seed_holds_out_other_rows(self, checkpoint: Path, questions: Path) -> None:
        first, same, other = (
            held_out_texts(prepared_run(checkpoint, questions, training={"seed": s})) for s in (1, 1, 2)
        )
        assert first == same != other

    def test_questions_of_held_out_rows_are_not_measured(self, checkpoint: Path, questions: Path) -> None:
        prepared = prepared_run(checkpoint, questions)
        assert prepared.held_out is not None
        for ids, labels in prepared.held_out.sequences:
            assert (labels[:8] == -100).all()
            assert torch.equal(labels[8:], ids[8:])

    def test_data_too_short_to_hold_some_out_is_trained_on_whole(self, checkpoint: Path, tmp_path: Path) -> None:
        rows = ({"prompt": "a", "completion": text} for text in sentences(19))
        prepared = prepared_run(checkpoint, write_jsonl(tmp_path / "short.jsonl", rows))
        assert prepared.held_out is None
        assert len(prepared.train_rows) == 19

    def test_data_that_is_named_to_measure_on_leaves_the_training_data_whole(
        self, checkpoint: Path, questions: Path, tmp_path: Path
    ) -> None:
        other = write_jsonl(tmp_path / "other.jsonl", ({"prompt": "q", "completion": str(n)} for n in range(9)))
        prepared = prepared_run(checkpoint, questions, eval_data=str(other), eval_sequences=4)
        assert len(trained_texts(prepared)) == 60
        assert held_out_texts(prepared) == [f"q{n}</s>" for n in range(4)]

    def test_nothing_is_held_out_where_nothing_is_measured(self, checkpoint: Path, questions: Path) -> None:
        prepared = prepared_run(checkpoint, questions, eval_sequences=0)
        assert prepared.held_out is None
        assert len(trained_texts(prepared)) == 60


class TestArguments:
    def test_defaults_are_those_of_the_paper_but_for_the_learning_rate(self, checkpoint: Path, data: Path) -> None:
        arguments = prepare(checkpoint, data, CONFIG, RunInputs(), Path("unused")).arguments
        assert (arguments.learning_rate, arguments.warmup_steps) == (5e-3, 0.05)  # of a small model
        assert arguments.lr_scheduler_type == "cosine"
        assert arguments.num_train_epochs == 2
        assert arguments.max_length == CONTEXT  # the model's context, where that is below 1024
        assert arguments.report_to == []

    @pytest.mark.skipif(torch.cuda.is_available(), reason="on an accelerator both are on")
    def test_16_bits_and_recomputation_are_off_on_a_cpu_unless_asked_for(self, checkpoint: Path, data: Path) -> None:
        plain = prepare(checkpoint, data, CONFIG, RunInputs(), Path("unused")).arguments
        assert (plain.bf16, getattr(plain, RECOMPUTATION), plain.use_cpu) == (False, False, True)
        asked = prepared_run(checkpoint, data, training={"bf16": True, RECOMPUTATION: True}).arguments
        assert (asked.bf16, getattr(asked, RECOMPUTATION)) == (True, True)
        old_name = prepared_run(checkpoint, data, training={"gradient_checkpointing": True}).arguments
        assert getattr(old_name, RECOMPUTATION) is True

    @pytest.mark.parametrize(
        ("length", "message"),
        [
            (CONTEXT + 1, rf"longer than the model's context of {CONTEXT} tokens. Use --max-length {CONTEXT} or less"),
            (1, "max_length is 1; sequences need at least 2 tokens"),
            (None, "max_length is None"),
        ],
    )
    def test_a_wrong_length_is_refused(self, checkpoint: Path, data: Path, length: int | None, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            prepared_run(checkpoint, data, training={"max_length": length})

    def test_the_seed_of_training_is_the_seed_of_pruning(self, checkpoint: Path, data: Path) -> None:
        assert prepared_run(checkpoint, data, training={"seed": 7}).pruning.seed == 7


class TestFolders:
    def test_a_full_disk_is_noticed_before_any_work(
        self, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(export.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
        with pytest.raises(OSError, match=r"needs about 0\.00 GB in .*Free some space"):
            prepared_run(checkpoint, data, output=tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    def test_an_output_that_holds_something_is_refused_before_the_data_is_read(
        self, checkpoint: Path, tmp_path: Path
    ) -> None:
        out, broken = tmp_path / "out", tmp_path / "broken.jsonl"
        out.mkdir()
        (out / "mine.txt").write_text("mine")
        broken.write_text("no JSON")
        with pytest.raises(ValueError, match="exists and is not empty"):
            prepared_run(checkpoint, broken, output=out)

    def test_an_output_that_holds_what_the_run_reads_is_refused_even_with_overwrite(
        self, checkpoint: Path, data: Path, tmp_path: Path
    ) -> None:
        inside = write_texts(tmp_path / "data.jsonl")
        with pytest.raises(ValueError, match=f"{inside} lies in the output folder {tmp_path}"):
            prepared_run(checkpoint, inside, output=tmp_path, overwrite=True)
        with pytest.raises(ValueError, match=f"{checkpoint} lies in the output folder"):
            prepared_run(checkpoint, data, output=checkpoint, overwrite=True)

    @pytest.mark.parametrize(
        "name", ["thesis.tex", "checkpoint-best/a", "adapter-of-mine/a", "checkpoint-4/thesis.tex"]
    )
    def test_a_folder_for_the_state_that_holds_something_else_is_refused_even_with_overwrite(
        self, checkpoint: Path, data: Path, tmp_path: Path, name: str
    ) -> None:
        thesis = tmp_path / "out.run" / name
        thesis.parent.mkdir(parents=True)
        thesis.write_text("three years")
        with pytest.raises(ValueError, match=r"out\.run, which has other contents"):
            prepared_run(checkpoint, data, output=tmp_path / "out", overwrite=True)
        assert thesis.is_file()

    def test_a_file_in_the_place_of_the_state_is_refused(self, checkpoint: Path, data: Path, tmp_path: Path) -> None:
        (tmp_path / "out.run").write_text("three years")
        with pytest.raises(ValueError, match=r"out\.run, which is a file"):
            prepared_run(checkpoint, data, output=tmp_path / "out", overwrite=True)

    def test_data_in_the_folder_for_the_state_is_refused(self, checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "data.run").mkdir()
        inside = write_texts(tmp_path / "data.run" / "README.md")
        with pytest.raises(ValueError, match="lies in the output folder"):
            prepared_run(checkpoint, inside, output=tmp_path / "data", overwrite=True)


class TestTokenizer:
    def test_one_that_knows_more_tokens_than_the_model_is_refused_where_the_data_has_them(
        self, checkpoint: Path, tmp_path: Path
    ) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["zebra"])
        tokenizer.save_pretrained(tmp_path / "tokenizer")

        def prepared(text: str) -> PreparedTraining:
            data = write_jsonl(tmp_path / "data.jsonl", [{"text": text * 30}])
            inputs = RunInputs(training=QUICK, tokenizer=str(tmp_path / "tokenizer"))
            return prepare(checkpoint, data, CONFIG, inputs, Path("unused"))

        with pytest.raises(ValueError, match="the data has token 261, and the model knows 261"):
            prepared("a zebra ")
        assert len(prepared("a horse ").train_rows) > 0


def test_no_weights_are_loaded_to_prepare(tmp_path: Path, data: Path, checkpoint: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    prepared = prepared_run(tmp_path, data)
    assert prepared.structure.num_parameters == prepared_run(checkpoint, data).structure.num_parameters
    assert prepared.source.loaded is None


def test_a_tokenizer_of_another_checkpoint_may_be_named(tmp_path: Path, checkpoint: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    data = write_texts(tmp_path / "data.jsonl")
    inputs = RunInputs(training=QUICK, tokenizer=str(checkpoint))
    prepared = prepare(tmp_path, data, CONFIG, inputs, Path("unused"))
    assert prepared.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()


def test_rows_that_are_cut_or_left_out_are_said(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = Dataset.from_list(
        [{"prompt": "a", "completion": "b" * 200}]
        + [{"prompt": "a" * 200, "completion": "b"}, {"prompt": "a", "completion": ""}]
        + [{"prompt": "a", "completion": "b"}] * 2
    )
    with caplog.at_level("WARNING", logger="loraprune"):
        prune(
            checkpoint,
            rows,
            PruningConfig(ratio=0.5, calibration_sequences=2),
            training={"max_steps": 1, "max_length": 32, "per_device_train_batch_size": 1},
            options=RunOptions(eval_sequences=0, latency=False),
        )
    said = caplog.text
    assert "training rows cut to 32 tokens (--max-length): 1 of 5" in said
    assert "left out, because nothing to train on fits within --max-length: 1 of 5" in said
    assert "left out, because they hold no text or no answer: 1 of 5" in said
