from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from loraprune.measure.evaluation.results import Entry, Results, ResultsError, read_results


def entry(**changes: Any) -> Entry:
    values: dict[str, Any] = {
        "model": "m",
        "fingerprint": "sha256:1",
        "kind": "perplexity",
        "name": "ptb",
        "settings": {"max_length": 64, "stride": None, "limit": None},
        "values": {"perplexity": 2.0},
    }
    return Entry(**values | changes)


def test_what_is_written_can_be_read_again(tmp_path: Path) -> None:
    results = Results((entry(), entry(name="c4", values={"completions": [{"prompt": "ä", "completion": "\n"}]})))
    (tmp_path / "r.json").write_text(results.to_text(), encoding="utf-8")
    assert read_results(tmp_path / "r.json") == results


def test_figures_that_are_no_numbers_become_null() -> None:
    text = Results((entry(values={"perplexity": math.inf, "loss": math.nan}),)).to_text()
    assert json.loads(text)["entries"][0]["values"] == {"perplexity": None, "loss": None}


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": "x"},
        {"name": "c4"},
        {"kind": "task"},
        {"settings": {"max_length": 65}},
        {"data": {"sha256": "x"}},
    ],
    ids=str,
)
def test_another_model_name_setting_or_text_is_another_measure(changes: dict[str, Any]) -> None:
    assert entry(**changes).key != entry().key


def test_the_same_measure_under_another_path_or_at_another_time_is_the_same() -> None:
    assert entry(model="other", created="later", seconds=3.0, values={}).key == entry().key


def test_a_newer_figure_takes_the_place_of_the_older_one() -> None:
    results = Results((entry(), entry(name="c4"))).with_(entry(values={"perplexity": 3.0}))
    assert [(one.name, one.values["perplexity"]) for one in results.entries] == [("c4", 2.0), ("ptb", 3.0)]
    found = results.find(entry().key)
    assert found is not None
    assert found.values == {"perplexity": 3.0}
    assert results.find(entry(name="x").key) is None


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({"max_length": 64}, "ptb@64"),
        ({"max_length": 64, "stride": 64}, "ptb@64"),
        ({"max_length": 64, "stride": 16}, "ptb@64/16"),
        ({"max_length": 64, "stride": None, "limit": 10}, "ptb@64, first 10"),
        ({"max_length": 64, "bos": True}, "ptb@64, BOS"),
        ({"max_length": 64, "bos": False, "limit": 10}, "ptb@64, no BOS, first 10"),
        ({}, "ptb"),
    ],
)
def test_a_perplexity_is_never_printed_without_its_length(settings: dict[str, Any], label: str) -> None:
    assert entry(settings=settings).label == label


def test_the_label_of_a_task_is_its_name() -> None:
    assert entry(kind="task", name="piqa", settings={"max_length": 64}).label == "piqa"
    assert entry(kind="task", name="piqa", settings={"chat_template": True}).label == "piqa, chat"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "cannot be read as results of loraprune eval: .*Name another file"),
        ("[]", "was not written by loraprune eval"),
        ('{"format": "other", "version": 1}', "was not written by loraprune eval"),
        ('{"format": "loraprune-evaluation", "version": 2, "entries": []}', "has version 2 .* reads version 1"),
        ('{"format": "loraprune-evaluation", "version": 1}', "is damaged"),
        ('{"format": "loraprune-evaluation", "version": 1, "entries": [{"model": "m"}]}', "is damaged"),
        (
            '{"format": "loraprune-evaluation", "version": 1, "entries": [{"model": "m", "fingerprint": "f", '
            '"kind": "task", "name": "piqa", "settings": null}]}',
            "is damaged: the settings of an entry is None",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ResultsError, match=message):
        read_results(tmp_path / "r.json")


def test_what_a_later_version_adds_to_an_entry_is_left_out(tmp_path: Path) -> None:
    values = json.loads(Results((entry(),)).to_text())
    values["entries"][0]["color"] = "blue"
    (tmp_path / "r.json").write_text(json.dumps(values))
    assert read_results(tmp_path / "r.json").entries[0].key == entry().key
