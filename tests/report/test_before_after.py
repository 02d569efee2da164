"""The comparison says how the pruned model differs, in words and figures."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.sample_reports import recovered_report

from loraprune.record.report_data import Recovery, Row, Unit
from loraprune.report import before_after

if TYPE_CHECKING:
    from loraprune.record.report_data import ReportData

TIMES = "\N{MULTIPLICATION SIGN}"
DASH = "\N{EN DASH}"


@pytest.mark.parametrize(
    ("unit", "before", "after", "text"),
    [
        (Unit.PARAMETERS, 100, 50, "\N{MINUS SIGN}50.0 %"),
        (Unit.PERPLEXITY, 4.0, 5.0, "+25.0 %"),
        (Unit.PERPLEXITY, 4.0, 12.0, f"3.00{TIMES}"),
        (Unit.BITS_PER_BYTE, 0.5, 0.5, "unchanged"),
        (Unit.MILLISECONDS, 12.0, 8.0, f"1.50{TIMES} faster"),
        (Unit.MILLISECONDS, 8.0, 12.0, f"1.50{TIMES} slower"),
        (Unit.MILLISECONDS, 8.0, 8.01, "unchanged"),
        (Unit.TOKENS_PER_SECOND, 1000, 1500, f"1.50{TIMES} faster"),
        (Unit.ACCURACY, 0.61, 0.58, "\N{MINUS SIGN}3.0 points"),
        (Unit.PARAMETERS, 0, 0, DASH),
        (Unit.MILLISECONDS, 8.0, 0.0, DASH),
        (Unit.PERPLEXITY, math.inf, 4.0, DASH),
        (Unit.PERPLEXITY, 4.0, None, DASH),
    ],
)
def test_changes(unit: Unit, before: float | None, after: float | None, text: str) -> None:
    assert before_after.change(before, after, unit) == text


def test_every_unit_can_be_shown() -> None:
    for unit in Unit:
        assert before_after.format_row(Row(label="x", unit=unit, dense=0.5, pruned=None)).pruned == DASH


def test_the_summary_tells_ratio_cuts_steps_and_time(sample: ReportData) -> None:
    expected = (
        "50.3 % of the prunable parameters removed (target 50.0 %), in 8 cuts, over 150 training steps (1 min 47 s)."
    )
    assert before_after.summary(sample) == expected


def test_the_summary_of_a_training_free_run_says_so(sample: ReportData) -> None:
    text = before_after.summary(replace(sample, history=(), cuts=sample.cuts[:1]))
    assert text.endswith("in one cut, without training.")


def test_the_summary_of_weights_that_became_zero_in_training_tells_the_steps(sample: ReportData) -> None:
    report = replace(sample, headline=replace(sample.headline, ratio=0.5, sparsity="pst, 50%"))
    expected = "50.0 % of the weights that LoRA adapted set to zero (pst, 50%), over 150 training steps (1 min 47 s)."
    assert before_after.summary(report) == expected
    assert before_after.summary(replace(report, history=())).endswith("(pst, 50%), without training.")


def test_the_summary_of_a_recovery_tells_steps_and_zeros() -> None:
    report = recovered_report()
    tuned = "Tuned over 150 training steps (1 min 47 s)"
    zeros = "50.0 % of the weights of the blocks' linear layers were zero"
    assert before_after.summary(report) == f"{tuned}; {zeros} and still are."
    filled = replace(report, recovery=Recovery(zeros_before=0.5, zeros_after=0.1))
    assert before_after.summary(filled) == f"{tuned}; {zeros}, 10.0 % are now."
    assert before_after.summary(replace(report, recovery=Recovery())) == f"{tuned}."
    assert before_after.summary(replace(report, recovery=Recovery(), history=())) == "Tuned."
