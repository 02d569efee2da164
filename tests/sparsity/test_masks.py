from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.sparsity import golden
from tests.sparsity.data import weight_of

from loraprune.sparsity.masks import (
    VARIANT_TOLERANCE,
    lowest,
    lowest_of_matrix,
    lowest_of_parts,
    lowest_of_rows,
    lowest_of_rows_by_share,
)
from loraprune.sparsity.pattern import parse_pattern

# Few values, so that most scores have an equal.
SCORES = st.builds(
    lambda rows, parts, seed: torch.randint(0, 4, (rows, 8 * parts), generator=torch.Generator().manual_seed(seed)),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 10_000),
).map(torch.Tensor.float)
RATIOS = st.integers(1, 99).map(lambda hundredths: hundredths / 100)
PARTS = st.sampled_from(["1:2", "2:4", "1:4", "3:4", "4:8", "5:8"])


@given(scores=SCORES, data=st.data())
def test_the_lowest_go_and_of_equal_ones_the_first(scores, data):
    count = data.draw(st.integers(0, scores.shape[1]))
    expected = [golden.first_lowest(row.tolist(), count) for row in scores]
    assert lowest(scores, count).tolist() == expected


@given(scores=SCORES, ratio=RATIOS)
def test_a_matrix_loses_its_lowest_scores_wherever_they_are(scores, ratio):
    mask = lowest_of_matrix(scores, parse_pattern(ratio))
    assert mask.tolist() == golden.whole_mask(scores.numpy(), ratio).tolist()


@given(scores=SCORES, ratio=RATIOS)
def test_every_row_loses_its_own_lowest_scores(scores, ratio):
    mask = lowest_of_rows(scores, parse_pattern(ratio))
    assert mask.tolist() == golden.row_mask(scores.numpy(), ratio).tolist()


@given(scores=SCORES, text=PARTS)
@pytest.mark.parametrize("choose", [lowest_of_matrix, lowest_of_rows, lowest_of_parts])
def test_a_pattern_takes_n_of_every_m_consecutive_scores(choose, scores, text):
    pattern = parse_pattern(text)
    mask = choose(scores, pattern)
    assert mask.tolist() == golden.part_mask(scores.numpy(), pattern.n, pattern.m).tolist()
    assert (mask.unflatten(1, (-1, pattern.m)).sum(-1) == pattern.n).all()


def test_the_groups_of_comparison_are_different_ones():
    # One row of small scores, and one small score in every part of the other.
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 9.0, 2.0, 8.0]])
    half = parse_pattern(0.5)
    assert lowest_of_matrix(scores, half).tolist() == [[True] * 4, [False] * 4]
    assert lowest_of_rows(scores, half).tolist() == [[True, True, False, False], [True, False, True, False]]
    assert lowest_of_parts(scores, parse_pattern("1:2")).tolist() == [[True, False] * 2, [True, False] * 2]


def test_scores_are_left_as_they_are():
    scores = weight_of(4, 8)
    before = scores.clone()
    for mask in (lowest_of_matrix(scores, parse_pattern(0.5)), lowest_of_rows(scores, parse_pattern("2:4"))):
        assert mask.dtype == torch.bool
    lowest_of_rows_by_share(scores, 0.5)
    assert torch.equal(scores, before)


def uneven_scores(rows, width):
    """Of nearly equal scores in the first row, of a few large ones and many small ones in the last."""
    return weight_of(rows, width, seed=1).abs() ** torch.linspace(0.3, 3.0, rows)[:, None]


def by_share(scores, ratio):
    """The rule of the variant: bisection on α, row by row and weight by weight."""
    low, high, found = 0.0, 1.0, None
    for _ in range(60):
        share = (low + high) / 2
        counts = []
        for row in scores:
            total, running, count = sum(sorted(row)), 0.0, 0
            for score in sorted(row):
                running += score
                count += running <= share * total
            counts.append(count)
        reached = sum(counts) / scores.size
        if found is None or abs(reached - ratio) < abs(found[0] - ratio):
            found = (reached, counts)
        if abs(reached - ratio) <= 1e-3:
            break
        low, high = (low, share) if reached > ratio else (share, high)
    return np.array([golden.first_lowest(list(row), count) for row, count in zip(scores, found[1], strict=True)])


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("shape", [(3, 8), (24, 40), (50, 60)])
def test_the_variant_cuts_every_row_at_the_share_that_bisection_finds(shape, ratio):
    scores = uneven_scores(*shape)
    assert lowest_of_rows_by_share(scores, ratio).tolist() == by_share(scores.double().numpy(), ratio).tolist()


def test_rows_of_the_variant_lose_the_more_scores_the_more_uneven_these_are():
    counts = lowest_of_rows_by_share(uneven_scores(3, 200), 0.5).sum(1).tolist()
    assert counts[0] < counts[1] < counts[2]


@given(
    rows=st.integers(1, 6),
    width=st.integers(2, 12),
    seed=st.integers(0, 10_000),
    ratio=st.sampled_from([0.2, 0.5, 0.8]),
)
def test_the_variant_has_one_share_for_all_rows_and_comes_as_near_as_any_does(rows, width, seed, ratio):
    scores = torch.rand(rows, width, generator=torch.Generator().manual_seed(seed)) + 0.01
    counts = lowest_of_rows_by_share(scores, ratio).sum(1)
    cumulated = torch.cat([torch.zeros(rows, 1), scores.sort(1).values.double().cumsum(1)], 1)
    shares = cumulated / cumulated[:, -1:]
    taken = shares.gather(1, counts[:, None])
    following = shares.gather(1, (counts[:, None] + 1).clamp_max(width))
    assert taken.max() <= following.min() + 1e-9
    reachable = [float((shares[:, 1:] <= share).sum()) / scores.numel() for share in shares[shares < 1].tolist()]
    reached = float(counts.sum()) / scores.numel()
    nearest = min(abs(share - ratio) for share in reachable)
    assert abs(reached - ratio) <= max(VARIANT_TOLERANCE, nearest) + 1e-9


def test_the_variant_meets_the_ratio_where_the_matrix_is_large_enough():
    scores = weight_of(200, 100, seed=3).abs()
    for ratio in (0.2, 0.5, 0.55):
        assert abs(float(lowest_of_rows_by_share(scores, ratio).float().mean()) - ratio) <= VARIANT_TOLERANCE
