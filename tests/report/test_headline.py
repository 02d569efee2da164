"""The sentence for somebody in a hurry: smaller, faster, and what it cost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.sample_reports import bare_report, recovered_report

from loraprune.record.report_data import Row, Unit
from loraprune.report.headline import tiles, verdict

if TYPE_CHECKING:
    from loraprune.record.report_data import ReportData

TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"


def perplexity(dense: float, pruned: float) -> Row:
    return Row(label="Perplexity", unit=Unit.PERPLEXITY, dense=dense, pruned=pruned)


def test_it_names_size_speed_and_quality(sample: ReportData) -> None:
    assert verdict(sample) == (
        f"The pruned model has 43.3 % fewer parameters and is 1.62{TIMES} faster. "
        "Its perplexity rises from 4.09 to 6.42 (+57.0 %; lower is better)."
    )


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (Row(label="Forward pass", unit=Unit.MILLISECONDS, dense=10.0, pruned=20.0), f" but is 2.00{TIMES} slower."),
        (Row(label="Decoding", unit=Unit.TOKENS_PER_SECOND, dense=10.0, pruned=20.0), f" and is 2.00{TIMES} faster."),
        (Row(label="Forward pass", unit=Unit.MILLISECONDS, dense=10.0, pruned=10.01), "is as fast as before."),
        (Row(label="Forward pass", unit=Unit.MILLISECONDS, dense=10.0, pruned=None), "43.3 % fewer parameters."),
        (
            Row(label="Accuracy", unit=Unit.ACCURACY, dense=0.8, pruned=0.78),
            f"falls from 80.0 % to 78.0 % ({MINUS}2.0 points).",
        ),
        (perplexity(4.0, 4.0), "Its perplexity stays at 4.00."),
        (perplexity(4.0, math.inf), "43.3 % fewer parameters."),
    ],
)
def test_it_says_what_was_measured_and_no_more(sample: ReportData, row: Row, text: str) -> None:
    assert verdict(replace(sample, rows=(row,))).endswith(text)


def test_a_run_that_prunes_nothing_tells_of_quality_alone() -> None:
    assert verdict(recovered_report()) == "Perplexity rises from 4.09 to 6.42 (+57.0 %; lower is better)."


def test_of_a_sparse_model_it_tells_the_zeros(sample: ReportData) -> None:
    headline = replace(sample.headline, sparsity="50% of the weights", ratio=0.5)
    said = verdict(replace(sample, headline=headline, rows=(perplexity(4.0, 5.0),), after="sparse"))
    assert said == (
        "The sparse model has zeros for 50.0 % of the weights of its linear layers. "
        "Its perplexity rises from 4.00 to 5.00 (+25.0 %; lower is better)."
    )


def test_without_any_figure_it_says_nothing() -> None:
    assert verdict(bare_report()) == ""


def test_the_page_begins_with_size_speed_and_quality(sample: ReportData) -> None:
    shown = tiles(sample)
    assert [tile.label for tile in shown] == ["Parameters", "File size", "Forward pass", "Perplexity"]
    assert [tile.meaning for tile in shown] == ["Smaller", "Smaller", "Faster", "What it cost"]
    assert [tile.change for tile in shown][2:] == [f"1.62{TIMES} faster", "+57.0 %"]


def test_the_headline_does_without_rows(sample: ReportData) -> None:
    assert [tile.label for tile in tiles(replace(sample, rows=()))] == ["Parameters"]


def test_of_two_rows_of_a_unit_the_tile_shows_the_one_that_changed(sample: ReportData) -> None:
    rows = (
        Row(label="Parameters", unit=Unit.PARAMETERS, dense=10, pruned=10),
        Row(label="Weights that are not zero", unit=Unit.PARAMETERS, dense=10, pruned=5),
        perplexity(5.0, 4.0),
        Row(label="Forward pass", unit=Unit.MILLISECONDS, dense=1.0, pruned=1.0),
    )
    headline = replace(sample.headline, sparsity="50%")
    shown = tiles(replace(sample, rows=rows, headline=headline))
    assert [(tile.meaning, tile.label) for tile in shown] == [
        ("Sparser", "Weights that are not zero"),
        ("Speed", "Forward pass"),
        ("Gained", "Perplexity"),
    ]
