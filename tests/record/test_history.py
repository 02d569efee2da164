from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints import byte_model
from transformers import AutoModelForCausalLM

from loraprune.record.codec import decode, encode
from loraprune.record.history import base_pruning, base_pruning_of
from loraprune.record.run_record import History, RunRecord, upgraded


def summary_of(record: dict[str, Any]) -> History:
    return decode(RunRecord, upgraded(record)).summary()


def zeros(share: float) -> dict[str, Any]:
    return {"share": share, "zeros": int(100 * share), "weights": 100}


PRUNING = {
    "ratio": 0.501,
    "target_ratio": 0.5,
    "parameters_before": 1000,
    "parameters": 500,
    "prunable_parameters_before": 1000,
    "prunable_parameters": 499,
}
ONESHOT: dict[str, Any] = {
    "base_model": "some/model",
    "created": "2026-01-02T03:04:05+00:00",
    "settings": {"oneshot": {"method": "wanda", "sparsity": "2:4"}},
    "metrics": {"sparsity": {"pattern": "2:4", "reached": 0.5}},
    "plan": {"layers.0.heads": [0, 1]},
}
JOINT = {"settings": {"pruning": {"criterion": "fisher"}}, "metrics": {"pruning": PRUNING}}
RECOVERY = {
    "settings": {"recovery": {"keep_zeros": True}},
    "metrics": {"sparsity": {"before": zeros(0.5), "after": zeros(0.5)}},
    "base_pruning": encode(summary_of(ONESHOT)),
}


def test_the_history_is_short() -> None:
    assert encode(summary_of(ONESHOT)) == {
        "base_model": "some/model",
        "created": "2026-01-02T03:04:05+00:00",
        "recipe": "oneshot",
        "method": "wanda",
        "pattern": "2:4",
        "sparsity": 0.5,
    }


def test_the_record_of_a_callback_is_understood_too() -> None:
    record = {"settings": {"pruning": {"criterion": "lora"}}, "pruning": PRUNING}
    assert summary_of(record) == History(recipe="prune", method="lora", ratio=0.501)


def test_a_chain_of_runs_is_told_from_the_last_to_the_first() -> None:
    history = summary_of({**JOINT, "base_pruning": encode(summary_of(RECOVERY))})
    assert history.recipe == "prune"
    assert history.base_pruning is not None
    assert history.base_pruning.recipe == "recover"
    assert history.base_pruning.base_pruning == summary_of(ONESHOT)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (ONESHOT, "2:4 sparse by `wanda`"),
        (JOINT, "50 % of the prunable parameters removed by `fisher`"),
        (RECOVERY, "2:4 sparse by `wanda`"),
        ({**RECOVERY, "base_pruning": {}}, "50% sparse"),
        ({**RECOVERY, "metrics": {"sparsity": {"after": zeros(0.0)}}}, ""),
        (
            {"settings": {"recovery": {"keep_zeros": False}}, "base_pruning": encode(summary_of(JOINT))},
            "50 % of the prunable parameters removed by `fisher`",
        ),
        ({}, ""),
    ],
)
def test_the_card_says_what_the_base_was(record: dict[str, Any], words: str) -> None:
    assert summary_of(record).in_words() == words


@pytest.mark.parametrize("content", [None, "no json", "[1]", "3"])
def test_a_checkpoint_without_a_record_has_no_history(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "pruning.json").write_text(content)
    assert base_pruning(str(tmp_path)) is None


def test_a_record_is_found_in_the_folder_of_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "pruning.json").write_text(json.dumps(ONESHOT))
    assert base_pruning(str(tmp_path)) == summary_of(ONESHOT)


def test_a_folder_that_is_not_there_has_no_history(tmp_path: Path) -> None:
    assert base_pruning(str(tmp_path / "missing")) is None


def test_a_model_in_memory_has_that_of_the_folder_it_came_from(tmp_path: Path) -> None:
    model = byte_model()
    assert base_pruning_of(model) is None
    model.save_pretrained(tmp_path)
    (tmp_path / "pruning.json").write_text(json.dumps(ONESHOT))
    assert base_pruning_of(AutoModelForCausalLM.from_pretrained(tmp_path)) == summary_of(ONESHOT)
