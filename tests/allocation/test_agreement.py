from __future__ import annotations

import itertools

import pytest
import torch

from loraprune.allocation.agreement import Agreement, agreements, overlap, overlap_by_chance
from loraprune.allocation.allocate import allocate
from loraprune.importance.configs import Fisher, Flap, Wanda
from loraprune.importance.flap import standardized
from loraprune.importance.moving_average import Scores
from loraprune.structure.dimensions import Structure
from loraprune.structure.plan import Plan
from loraprune.structure.widths import LegalWidths, legal_widths

CRITERIA = {
    **dict.fromkeys("abc", Fisher()),
    "one": Fisher(),
    "scaled": Fisher(),
    "not": Fisher(),
    "flap": Flap(),
    "wanda": Wanda(),
}
RATIOS = (0.25, 0.5)


@pytest.fixture
def legal(structure: Structure) -> LegalWidths:
    return legal_widths(structure, channel_multiple=1, head_counts="any")


def scores(structure: Structure, seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return {d.name: torch.rand(d.num_groups, generator=generator) for d in structure}


def of(rows: list[Agreement], **wanted: object) -> Agreement:
    (row,) = (row for row in rows if all(getattr(row, name) == value for name, value in wanted.items()))
    return row


def test_the_overlap_is_the_share_of_removed_groups_in_common() -> None:
    assert overlap({0, 1, 2, 3}, {2, 3, 4, 5}) == 0.5
    assert overlap({0, 1}, {0, 1}) == 1.0
    assert overlap({0, 1}, {2, 3}) == 0.0
    assert overlap({0}, {0, 1, 2}) == 0.5  # of two groups on average


def test_the_overlap_by_chance_is_the_mean_over_all_choices() -> None:
    choices = list(itertools.combinations(range(6), 3))
    mean = sum(overlap(one, other) for one in choices for other in choices) / len(choices) ** 2
    assert overlap_by_chance(3, 3, 6) == pytest.approx(mean)
    fewer = list(itertools.combinations(range(6), 2))
    mean = sum(overlap(one, other) for one in choices for other in fewer) / len(choices) / len(fewer)
    assert overlap_by_chance(3, 2, 6) == pytest.approx(mean)


def test_a_criterion_agrees_fully_with_itself_at_any_scale(structure: Structure, legal: LegalWidths) -> None:
    own = scores(structure, 0)
    scaled = {name: 1000 * value for name, value in own.items()}
    rows = agreements(structure, {"one": own, "scaled": scaled}, RATIOS, legal, criteria=CRITERIA)
    assert {row.shared for row in rows} == {1.0}
    assert all(row.layers == len(structure.of_kind(row.kind)) for row in rows)


def test_opposite_scores_share_nothing_up_to_one_half(structure: Structure, legal: LegalWidths) -> None:
    own = scores(structure, 0)
    rows = agreements(structure, {"one": own, "not": {n: -v for n, v in own.items()}}, RATIOS, legal, criteria=CRITERIA)
    assert {row.shared for row in rows} == {0.0}
    assert {row.by_chance for row in rows} == set(RATIOS)


def test_agreement_is_the_mean_over_layers_of_the_lowest_scores_in_common(
    structure: Structure, legal: LegalWidths
) -> None:
    named = {name: scores(structure, seed) for seed, name in enumerate(("a", "b", "c"))}
    rows = agreements(structure, named, RATIOS, legal, criteria=CRITERIA)
    assert len(rows) == 3 * len(structure.kinds) * len(RATIOS)
    for (first, second), kind, ratio in itertools.product(
        [("a", "b"), ("a", "c"), ("b", "c")], structure.kinds, RATIOS
    ):
        shares = []
        for dimension in structure.of_kind(kind):
            count = round(ratio * dimension.num_groups)
            lowest = [
                set(sorted(range(dimension.num_groups), key=lambda g: float(named[n][dimension.name][g]))[:count])
                for n in (first, second)
            ]
            shares.append(len(lowest[0] & lowest[1]) / count)
        row = of(rows, first=first, second=second, kind=kind, ratio=ratio)
        assert row.shared == pytest.approx(sum(shares) / len(shares))
        assert row.by_chance == pytest.approx(ratio)


def test_where_no_group_goes_there_is_no_agreement(structure: Structure, legal: LegalWidths) -> None:
    named = {"a": scores(structure, 0), "b": scores(structure, 1)}
    row = of(
        agreements(structure, named, [0.05], legal, criteria=CRITERIA), kind="heads"
    )  # four heads: none of them goes yet
    assert (row.shared, row.by_chance, row.layers) == (None, None, 0)


def test_flap_in_a_global_allocation_ranks_standardized_scores_as_in_a_run(
    structure: Structure, legal: LegalWidths
) -> None:
    # Layers of very different scale, which standardizing evens out.
    own = {name: 10.0**i * value for i, (name, value) in enumerate(scores(structure, 0).items())}
    sizes = {dimension.name: dimension.consumer.group_size for dimension in structure}
    ranked = {name: standardized(value, sizes[name]) for name, value in own.items()}
    other, full = scores(structure, 1), Plan.full(structure)
    plans = [
        allocate(structure, full, ranked, 0.5, legal, "global", scale="rank"),
        allocate(structure, full, other, 0.5, legal, "global", scale="own"),
    ]
    rows = agreements(structure, {"flap": own, "wanda": other}, (0.5,), legal, "global", criteria=CRITERIA)
    for kind in structure.kinds:
        shared = []
        for dimension in structure.of_kind(kind):
            first, second = (set(range(dimension.num_groups)) - set(plan.kept[dimension.name]) for plan in plans)
            if first or second:
                shared.append(overlap(first, second))
        assert of(rows, kind=kind, ratio=0.5).shared == pytest.approx(sum(shared) / len(shared))
