from __future__ import annotations

import math

import pytest

from loraprune.metrics.tasks import COMMONSENSE, TaskScore, averages


def test_the_average_says_which_accuracies_it_takes() -> None:
    values = {"a": {"acc": 0.2, "acc_norm": 0.4}, "b": {"acc": 0.6}}
    acc, norm = averages(values)
    assert (acc.tasks, acc.metric, acc.value) == ("average of 2", "acc", pytest.approx(0.4))
    assert (norm.metric, norm.value) == ("acc_norm", pytest.approx(0.5))
    assert norm.metrics == {"a": "acc_norm", "b": "acc"}


def test_of_the_seven_there_is_the_average_of_the_papers_tables_too() -> None:
    with_norm = {"piqa", "hellaswag", "arc_easy", "arc_challenge", "openbookqa"}
    values = {
        name: {"acc": number / 10} | ({"acc_norm": number / 10 + 0.1} if name in with_norm else {})
        for number, name in enumerate(COMMONSENSE)
    }
    acc, norm, paper = averages({**values, "other": {"acc": 0.0}})
    assert acc.tasks == "average of the seven"
    assert acc.value == pytest.approx(0.3)
    assert norm.value == pytest.approx(0.3 + 0.5 / 7)
    assert paper.value == pytest.approx(0.3 + 0.3 / 7)
    assert {name for name, metric in paper.metrics.items() if metric == "acc_norm"} == {
        "hellaswag",
        "arc_challenge",
        "openbookqa",
    }


def test_one_task_has_no_average_and_groups_are_left_out() -> None:
    assert averages({"a": {"acc": 0.2}, "mmlu": {"acc": 0.3, "subtasks": {}}, "gsm8k": {"exact_match": 0.1}}) == []


@pytest.mark.parametrize("missing", [math.nan, None])
def test_an_average_with_a_missing_score_is_not_a_number(missing: float | None) -> None:
    (acc,) = averages({"a": {"acc": missing}, "b": {"acc": 0.5}})
    assert math.isnan(acc.value)


def test_plain_values_hold_metrics_counts_and_subtasks() -> None:
    part = TaskScore(name="birds", num_items=3, values={"acc": 0.5})
    score = TaskScore(name="all", num_items=3, num_fewshot=5, values={"acc": 0.5}, num_requests=12, subtasks=[part])
    assert score.to_values() == {
        "acc": 0.5,
        "num_fewshot": 5,
        "num_items": 3,
        "num_requests": 12,
        "subtasks": {"birds": {"acc": 0.5, "num_items": 3}},
    }
