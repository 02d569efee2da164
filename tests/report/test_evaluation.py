from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from loraprune.measure.evaluation.results import Entry
from loraprune.report.evaluation import short_names, show_entries


def entry(model: str, kind: str, values: dict[str, Any], **changes: Any) -> Entry:
    settings = {"max_length": 64} if kind == "perplexity" else {}
    return Entry(model=model, fingerprint=model, kind=kind, name="ptb", settings=settings, values=values, **changes)


def lines(*entries: Entry, width: int = 100) -> list[list[str]]:
    console = Console(width=width, record=True, file=io.StringIO())
    show_entries(console, entries)
    return [line.split() for line in console.export_text().splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["runs/a/out", "runs/b"], ["out", "b"]),
        (["runs/a/out", "runs/b/out"], ["a/out", "b/out"]),
        (["owner/model", "out/adapter"], ["model", "out/adapter"]),
        (["out", "x/out"], ["out", "x/out"]),
        (["/m/"], ["m"]),
    ],
)
def test_models_go_by_the_ends_of_their_names(models: list[str], names: list[str]) -> None:
    assert short_names(models) == names


def test_perplexities_are_shown_as_ratios_to_the_first() -> None:
    values = {"num_tokens": 1000, "num_segments": 10, "word_perplexity": 40.0, "bits_per_byte": 1.0}
    shown = lines(
        entry("a/dense", "perplexity", {"perplexity": 10.0, **values}, parameters=2000),
        entry("a/pruned", "perplexity", {"perplexity": 15.0, **values}, parameters=1000),
    )
    assert shown[0] == ["dense", "pruned"]
    assert shown[2] == ["parameters", "2,000", "1,000", "×0.500"]
    assert shown[3] == ["ptb@64", "10.00", "15.00", "×1.50"]
    assert shown[4] == ["perplexity,", "1,000", "tokens", "in", "10", "segments"]
    assert shown[5] == ["per", "word", "40.00", "40.00", "×1.00"]


def test_brackets_in_a_name_stay() -> None:
    shown = lines(entry("run[lr]", "perplexity", {"perplexity": 8.0}), entry("run[red]", "accuracy", {"accuracy": 0.5}))
    assert shown[0] == ["run[lr]", "run[red]"]


def test_accuracies_are_shown_with_their_change_in_points() -> None:
    shown = lines(
        entry("a", "accuracy", {"accuracy": 0.5, "loss": 1.0, "num_examples": 200}),
        entry("b", "accuracy", {"accuracy": 0.455, "loss": 1.5, "num_examples": 200}),
    )
    assert shown[3] == ["ptb", "50.0", "%", "45.5", "%", "−4.5"]
    assert shown[5] == ["loss", "1.000", "1.500", "×1.50"]


def test_what_is_missing_is_a_dash_and_what_is_no_number_says_so() -> None:
    values = {"num_tokens": 1000, "num_segments": 10}
    shown = lines(
        entry("a", "perplexity", {"perplexity": 10.0, "bits_per_byte": 1.0, **values}),
        entry("b", "perplexity", {"perplexity": None, "bits_per_byte": 1.0, **values}),
    )
    assert shown[2] == ["parameters", "–", "–"]
    assert shown[3] == ["ptb@64", "10.00", "NaN"]
    assert shown[5] == ["per", "word", "–", "–"]
