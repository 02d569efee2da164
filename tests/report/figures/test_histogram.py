"""The histogram of importance counts every group once, whatever its score."""

from __future__ import annotations

import math

import pytest

from loraprune.record.report_data import Importance
from loraprune.report.figures.series import histogram


def test_the_histogram_counts_every_group_once() -> None:
    scores = (0.0, -1.0, 1e-9, 1e-3, 1.0, 1e-20, math.nan, math.inf)
    kept = (True, False, True, True, False, True, True, True)
    counted = histogram([Importance(kind="channels", layer=0, scores=scores, kept=kept)])
    assert counted.zero is not None
    assert (counted.zero.kept, counted.zero.removed) == (2, 1)
    assert sum(item.kept for item in counted.bins) == 2
    assert sum(item.removed for item in counted.bins) == 1
    assert counted.unknown == 2
    assert counted.bins[0].low == pytest.approx(-9)
    assert counted.bins[-1].high == pytest.approx(0)


def test_equal_scores_fall_into_the_middle_bin() -> None:
    bins = histogram([Importance(kind="heads", layer=0, scores=(2.0,) * 4, kept=(True,) * 4)]).bins
    assert [item.kept for item in bins].index(4) == len(bins) // 2
