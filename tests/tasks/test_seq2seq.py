from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tests.tasks.models import byte_tokenizer, reversals, tiny_t5
from tests.tasks.runs import CtrlC, losses, run
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from loraprune import PruneResult, PruningConfig
from loraprune.pruning.errors import InterruptedRunError


@pytest.fixture(scope="session")
def finished(pair_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> PruneResult:
    """A run with everything that can be asked for; no test changes it."""
    options = {"eval_data": reversals(80, seed=9), "unrecovered": True, "latency": True, "prompt": "abcdh"}
    return run(
        pair_checkpoint,
        reversals(3000),
        output=tmp_path_factory.mktemp("pairs") / "out",
        options=options,
        training={"max_steps": 120, "per_device_train_batch_size": 64},
    )


@pytest.mark.slow
def test_a_pruned_model_writes_what_the_dense_one_writes(finished: PruneResult) -> None:
    dense, unrecovered, pruned = (finished.metrics[name] for name in ("dense", "unrecovered", "pruned"))
    assert dense["data_fingerprint"] == pruned["data_fingerprint"] == unrecovered["data_fingerprint"]
    assert dense["exact_match"] > 0.95
    assert unrecovered["exact_match"] < 0.5
    assert pruned["exact_match"] > 0.9
    assert pruned["perplexity"] < unrecovered["perplexity"]
    assert dense["num_generated"] == 64
    assert pruned["num_tokens"] == 64 * 6
    assert finished.metrics["pruning"]["ratio"] == pytest.approx(0.5, abs=0.02)
    assert finished.report.completions[0].dense == finished.report.completions[0].pruned == "hdcba"


@pytest.mark.slow
def test_the_folder_loads_as_what_it_is(finished: PruneResult) -> None:
    assert finished.output is not None
    loaded = AutoModelForSeq2SeqLM.from_pretrained(finished.output)
    tokenizer = AutoTokenizer.from_pretrained(finished.output)
    batch = tokenizer(["abc", "habfg"], text_target=["cba", "gfbah"], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, finished.model(**batch).logits)
    written = loaded.generate(**tokenizer("gfedc", return_tensors="pt"), max_new_tokens=8)
    assert tokenizer.decode(written[0], skip_special_tokens=True) == "cdefg"


@pytest.mark.slow
def test_record_card_and_report_speak_of_targets(finished: PruneResult) -> None:
    assert finished.output is not None
    record = json.loads((finished.output / "pruning.json").read_text())
    assert record["task"] == "text-to-text"
    assert record["metrics"]["data"]["format"] == "source_target"
    card = (finished.output / "README.md").read_text()
    assert "`AutoModelForSeq2SeqLM.from_pretrained`" in card
    assert "| exact match (64 held-out targets) |" in card
    assert "| held-out perplexity (384 held-out target tokens) |" in card
    labels = [row.label for row in finished.report.rows]
    assert labels == ["Parameters", "File size", "Held-out perplexity", "Loss", "Exact match", "Forward pass"]


@pytest.mark.filterwarnings("ignore:Training ended")
def test_an_interrupted_run_that_is_resumed_ends_as_an_uninterrupted_one(pair_checkpoint: Path, tmp_path: Path) -> None:
    rows, training = reversals(300), {"max_steps": 12}
    expected = run(pair_checkpoint, rows, output=tmp_path / "whole", training=training)
    with pytest.raises(InterruptedRunError, match="Stopped at step 4 of 12"):
        run(pair_checkpoint, rows, output=tmp_path / "out", training=training, callbacks=[CtrlC(4)])
    resumed = run(pair_checkpoint, rows, output=tmp_path / "out", training=training, options={"resume": True})
    assert losses(resumed) == losses(expected)
    for name, value in expected.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("columns", "form"),
    [
        ({"prompt": ["ab"], "completion": ["ba"]}, "prompt_completion"),
        ({"instruction": ["turn"], "input": ["ab"], "output": ["ba"]}, "instruction"),
    ],
)
def test_other_columns_are_pairs_too(columns: dict[str, list[str]], form: str) -> None:
    rows = Dataset.from_dict({name: values * 30 for name, values in columns.items()})
    result = run(tiny_t5(), rows, tokenizer=byte_tokenizer(), training={"max_steps": 2})
    assert result.metrics["data"]["format"] == form
    assert result.metrics["data"]["trained_tokens"] == 30 * 3


def test_data_that_does_not_fit_is_refused() -> None:
    for columns, message in (
        ({"text": ["a"]}, r"the columns text, .* Known formats: source \+ target; prompt \+ completion; instruction"),
        ({"source": ["a"], "target": [""]}, "no row has both a source and a target"),
        ({"source": [1], "target": ["a"]}, "the column 'source' holds a int"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tiny_t5(), Dataset.from_dict(columns), tokenizer=byte_tokenizer())


def test_widths_that_differ_by_layer_are_refused_before_any_work() -> None:
    config = PruningConfig(ratio=0.5, allocation="global")
    with pytest.raises(ValueError, match="cannot differ from layer to layer"):
        run(tiny_t5(), reversals(30), config, tokenizer=byte_tokenizer())
