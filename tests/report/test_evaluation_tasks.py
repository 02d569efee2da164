from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from loraprune.measure.evaluation.results import Entry
from loraprune.report.evaluation import task_notes, task_table


def entry(name: str, **values: Any) -> Entry:
    return Entry(model="m", fingerprint="f", kind="task", name=name, values=values)


def printed(*columns: tuple[str, list[Entry]], width: int = 120) -> str:
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(task_table(columns))
    return capture.get()


DENSE = [
    entry("piqa", acc=0.75, acc_stderr=0.03, acc_norm=0.7, acc_norm_stderr=0.031, num_items=200, chance=0.5),
    entry("mmlu", acc=0.3, acc_stderr=0.01, num_items=400, num_fewshot=5, chance=0.25, subtasks={"a": {}}),
    entry("boolq", acc=0.6, num_items=1200),
    entry("wikitext", word_perplexity=12.3456, num_items=1),
]
PRUNED = [
    entry("piqa", acc=0.71, acc_stderr=0.032, acc_norm=0.7),
    entry("boolq", acc=0.6004),
    entry("mmlu", acc=0.35, subtasks={}),
]


def test_a_column_shows_a_model_and_its_changes_in_points() -> None:
    text = printed(("dense", DENSE), ("pruned", PRUNED))
    rows = {line.split("  ")[0].strip(): line for line in text.splitlines() if line.strip()}
    assert rows["piqa"].split() == ["piqa", "acc", "50.0", "3.2", "75.0", "71.0", "\N{MINUS SIGN}4.0"]
    assert rows["mmlu"].split() == ["mmlu", "acc", "25.0", "1.0", "30.0", "35.0", "+5.0"]
    assert rows["boolq"].split() == ["boolq", "acc", "60.0", "60.0", "+0.0"]
    assert rows["wikitext"].split() == ["wikitext", "word_perplexity", "12.3", "\N{EN DASH}"]
    assert "5-shot, 400 items" in text
    assert "1,200 items" in text


def test_averages_come_last_and_say_what_they_are_of() -> None:
    lines = printed(("dense", DENSE), ("pruned", PRUNED)).splitlines()
    (place,) = [number for number, line in enumerate(lines) if "average of 2" in line]
    assert lines[place].split() == ["average", "of", "2", "acc", "67.5", "65.5", "\N{MINUS SIGN}2.0"]
    assert lines[place + 1].split()[:2] == ["acc_norm", "65.0"]
    assert "average of acc_norm: acc if a task has none" in " ".join(" ".join(lines).split())


def test_an_average_is_over_tasks_that_every_model_has() -> None:
    assert "average" not in printed(("dense", DENSE), ("pruned", PRUNED[:1]))


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_score_that_is_no_number_says_so(value: float | None) -> None:
    line = next(line for line in printed(("a", [entry("piqa", acc=value)])).splitlines() if "piqa" in line)
    assert line.split()[-1] == "NaN"


def test_a_score_that_is_missing_is_a_dash() -> None:
    shown = printed(("a", [entry("piqa", acc=0.5)]), ("b", [entry("boolq", acc=0.5)]))
    line = next(line for line in shown.splitlines() if "piqa" in line)
    assert line.split()[-1] == "\N{EN DASH}"


def test_there_is_no_table_without_scores() -> None:
    assert task_table([("a", [])]) is None


def test_notes_name_requests_that_were_cut_choices_that_tie_and_likelihoods_that_are_nan() -> None:
    cut = entry("mmlu", num_truncated=1200, num_requests=4000, num_not_finite=0)
    broken = entry("piqa", num_truncated=0, num_requests=10, num_not_finite=10, num_tied=0)
    tied = entry("boolq", num_tied=1200, num_items=3270)
    assert task_notes([("dense", [cut]), ("pruned", [broken]), ("other", [tied])]) == [
        "dense: requests longer than its context lost their beginning: mmlu 1,200 of 4,000.",
        "pruned: log-likelihoods are NaN, so there are no scores: piqa 10 of 10. Try --dtype float32.",
        "other: several choices are equally likely, and the first one counts: boolq 1,200 of 3,270.",
    ]
