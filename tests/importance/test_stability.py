from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from loraprune.importance.stability import rank_correlation, ranks, stability

VALUES = st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=30)
"""Few different ones, so that there are ties."""


@given(VALUES)
def test_equal_values_share_the_mean_of_their_ranks(values: list[float]) -> None:
    assert ranks(torch.tensor(values)).tolist() == rankdata(values).tolist()


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=30))
def test_the_correlation_is_spearmans_also_with_ties(pairs: list[tuple[int, int]]) -> None:
    first, second = ([float(value) for value in side] for side in zip(*pairs, strict=True))
    found = rank_correlation(torch.tensor(first), torch.tensor(second))
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(float(spearmanr(first, second).statistic), abs=1e-12)


def test_it_is_that_of_ranks_and_not_of_sizes() -> None:
    assert rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 7.0, 1e9])) == pytest.approx(1.0)
    assert rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, 1.0])) == pytest.approx(-1.0)


@pytest.mark.parametrize("second", [[1.0], [math.nan, 1.0], [math.inf, 1.0]], ids=["one group", "NaN", "Inf"])
def test_where_there_is_none_it_is_none(second: list[float]) -> None:
    assert rank_correlation(torch.arange(float(len(second))), torch.tensor(second)) is None


def dimension(name: str, kind: str) -> Any:
    return SimpleNamespace(name=name, kind=kind)


DIMENSIONS = [dimension("0.heads", "heads"), dimension("1.heads", "heads"), dimension("0.channels", "channels")]


def test_groups_that_are_left_are_compared_and_layers_are_averaged() -> None:
    earlier = {
        "0.heads": torch.tensor([9.0, 1.0, 2.0, 3.0]),
        "1.heads": torch.tensor([1.0, 2.0, 3.0, 9.0]),
        "0.channels": torch.tensor([1.0, 2.0]),
    }
    kept = {"0.heads": (1, 2, 3), "1.heads": (0, 1, 2), "0.channels": (0, 1)}
    scores = {
        "0.heads": torch.tensor([1.0, 2.0, 3.0]),  # the same order
        "1.heads": torch.tensor([1.0, 3.0, 2.0]),  # 1 − 6·2/(3·8) = 0.5
        "0.channels": torch.tensor([2.0, 1.0]),
    }
    assert stability(DIMENSIONS, kept, earlier, scores) == pytest.approx({"heads": 0.75, "channels": -1.0})


def test_layers_without_a_ranking_do_not_count() -> None:
    earlier = {"0.heads": torch.tensor([1.0, 2.0]), "1.heads": torch.tensor([5.0, 5.0])}
    kept = {"0.heads": (0, 1), "1.heads": (0, 1)}
    scores = {"0.heads": torch.tensor([1.0, 2.0]), "1.heads": torch.tensor([1.0, 2.0])}
    assert stability(DIMENSIONS, kept, earlier, scores) == pytest.approx({"heads": 1.0})


def test_groups_that_had_no_score_are_left_out() -> None:
    earlier = {"0.heads": torch.tensor([1.0, math.nan, 2.0, 3.0])}
    scores = {"0.heads": torch.tensor([1.0, 99.0, 2.0, 3.0])}
    assert stability(DIMENSIONS, {"0.heads": (0, 1, 2, 3)}, earlier, scores) == pytest.approx({"heads": 1.0})


def test_at_the_first_cut_there_is_nothing_to_compare() -> None:
    assert stability(DIMENSIONS, {"0.heads": (0, 1)}, {}, {"0.heads": torch.tensor([1.0, 2.0])}) == {}
