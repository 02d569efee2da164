from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.models import tiny_config
from tests.tasks.models import WORDS, learned_texts, opinions, tiny_bert, tiny_roberta, word_tokenizer
from tests.tasks.runs import CtrlC, losses, run
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForSequenceClassification

from loraprune import PruneResult, PruningConfig
from loraprune.pruning.errors import InterruptedRunError


@pytest.fixture(scope="session")
def finished(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> PruneResult:
    """A run with everything that can be asked for; no test changes it."""
    options = {"eval_data": opinions(300, seed=9), "unrecovered": True, "latency": True, "save_adapter": True}
    config = PruningConfig(ratio=0.75, calibration_sequences=64)
    return run(text_checkpoint, opinions(600), config, output=tmp_path_factory.mktemp("texts") / "out", options=options)


def test_a_pruned_classifier_is_nearly_as_right_as_the_dense_one(finished: PruneResult) -> None:
    dense, pruned = finished.metrics["dense"], finished.metrics["pruned"]
    assert dense["accuracy"] > 0.95
    assert pruned["accuracy"] > dense["accuracy"] - 0.03
    assert finished.metrics["pruning"]["ratio"] == pytest.approx(0.75, abs=0.03)
    assert finished.model.num_parameters() == pruned["parameters"] < dense["parameters"]


def test_the_folder_loads_as_what_it_is(finished: PruneResult) -> None:
    assert finished.output is not None
    loaded = AutoModelForSequenceClassification.from_pretrained(finished.output)
    texts = opinions(20, seed=3)["text"][:]
    batch = AutoTokenizer.from_pretrained(finished.output)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, finished.model(**batch).logits)
    card = (finished.output / "README.md").read_text()
    assert "`AutoModelForSequenceClassification.from_pretrained`" in card
    assert "| accuracy (300 held-out texts) |" in card
    record = json.loads((finished.output / "pruning.json").read_text())
    assert record["task"] == "text-classification"
    assert record["settings"]["training"]["max_length"] == 32
    assert finished.report.rows[-1].detail.startswith("1 × 32 tokens")


def test_padding_changes_no_measure(finished: PruneResult) -> None:
    tokenizer = word_tokenizer()
    rows = opinions(300, seed=9)
    right = 0
    with torch.no_grad():
        for text, label in zip(rows["text"], rows["label"], strict=True):
            right += int(finished.model(**tokenizer(text, return_tensors="pt")).logits.argmax() == label)
    assert finished.metrics["pruned"]["accuracy"] == right / 300


@pytest.mark.filterwarnings("ignore:Training ended")
def test_an_interrupted_run_that_is_resumed_ends_as_an_uninterrupted_one(text_checkpoint: Path, tmp_path: Path) -> None:
    rows, training = opinions(600), {"max_steps": 12}
    expected = run(text_checkpoint, rows, output=tmp_path / "whole", training=training)
    with pytest.raises(InterruptedRunError, match="Stopped at step 4 of 12"):
        run(text_checkpoint, rows, output=tmp_path / "out", training=training, callbacks=[CtrlC(4)])
    resumed = run(text_checkpoint, rows, output=tmp_path / "out", training=training, options={"resume": True})
    assert losses(resumed) == losses(expected)
    for name, value in expected.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_a_roberta_reads_only_as_many_tokens_as_it_has_positions_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rows = opinions(100)
    long = rows.map(lambda row: {"text": f"{row['text']} " * 10})
    model = learned_texts(tiny_roberta(max_position_embeddings=20), rows)
    result = run(model, long, tokenizer=word_tokenizer(), training={"max_steps": 4})
    assert result.metrics["data"]["tokens"] <= 100 * 19  # 20 positions, of which padding takes one
    with pytest.raises(ValueError, match="context of 19 tokens"):
        run(model, long, tokenizer=word_tokenizer(), training={"max_length": 20})


def test_a_decoder_can_be_a_classifier_too() -> None:
    torch.manual_seed(0)
    config = tiny_config("llama", vocab_size=5 + len(WORDS), pad_token_id=0, num_labels=2)
    model = learned_texts(LlamaForSequenceClassification(config), opinions(600))
    options = {"eval_data": opinions(200, seed=9)}
    result = run(model, opinions(600), tokenizer=word_tokenizer(), options=options, training={"max_steps": 100})
    assert type(result.model) is LlamaForSequenceClassification
    assert result.metrics["dense"]["accuracy"] > 0.9
    assert result.metrics["pruned"]["accuracy"] > 0.85


def test_pairs_of_texts_are_told_apart(text_checkpoint: Path) -> None:
    rows = opinions(60)
    pairs = Dataset.from_dict({"sentence1": rows["text"], "sentence2": rows["text"], "label": rows["label"]})
    result = run(text_checkpoint, pairs, training={"max_steps": 2})
    assert result.metrics["data"]["format"] == "two texts and label"


def test_rows_that_are_cut_or_left_out_are_said(text_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = Dataset.from_dict({"text": ["good bird", "", "bad " * 40], "label": ["1", "0", "LABEL_0"]})
    training = {"max_steps": 1, "per_device_train_batch_size": 1, "max_length": 16}
    with caplog.at_level("WARNING", logger="loraprune"):
        run(text_checkpoint, rows, PruningConfig(ratio=0.5, calibration_sequences=2), training=training)
    assert "training rows cut to --max-length: 1 of 3" in caplog.text
    assert "left out, because they hold no text: 1 of 3" in caplog.text


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"source": ["a"], "target": ["b"]}, r"the columns 'text' .* and 'label', but the data has the columns source"),
        ({"text": ["good"], "label": [2]}, r"Row 1: the column 'label' holds the label 2, but the model has 2 labels"),
        ({"text": ["good"], "label": ["glad"]}, r"holds 'glad', which is not a label of the model.*LABEL_0, LABEL_1"),
        ({"text": ["good"], "label": [0.5]}, r"holds 0.5; a label must be a whole number"),
        ({"text": [3], "label": [0]}, r"the column 'text' holds a int; it must be text"),
        ({"text": [" "], "label": [0]}, r"all texts are empty"),
    ],
)
def test_data_that_does_not_fit_is_refused(columns: dict[str, Any], message: str, text_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(text_checkpoint, Dataset.from_dict(columns))


def test_an_image_processor_is_refused(text_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="You passed an image processor, and a model for text-classification"):
        run(text_checkpoint, opinions(60), image_processor=object())


def test_a_model_without_its_head_says_how_to_load_it(tmp_path: Path) -> None:
    tiny_bert().bert.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"a BertModel.*AutoModelForSequenceClassification.from_pretrained\(NAME"):
        run(tmp_path, opinions(60))
