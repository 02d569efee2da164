"""Which groups stay: the most important of each stratum, the same ones where dimensions are tied."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models import tiny_model

from loraprune.allocation.choices import Choice, choices
from loraprune.structure.describe import describe


def dimension(**changes):
    return replace(describe(tiny_model()).dimensions[0], **changes)


@given(data=st.data(), strata=st.integers(1, 3), each=st.integers(1, 6))
def test_each_stratum_keeps_its_most_important_groups(data, strata, each):
    values = data.draw(st.lists(st.integers(0, 4), min_size=strata * each, max_size=strata * each))
    choice = Choice((dimension(strata=strata),), torch.tensor(values, dtype=torch.float32).view(strata, each))
    count = data.draw(st.integers(1, each))
    kept = choice.kept(count)
    for stratum in range(strata):
        own = range(stratum * each, (stratum + 1) * each)
        best = sorted(own, key=lambda position: (-values[position], position))[:count]
        assert [position for position in kept if position in own] == sorted(best)
    lost = sum(value for position, value in enumerate(values) if position not in kept)
    assert choice.lost(count) == pytest.approx(lost)
    assert choice.losses()[count] == pytest.approx(lost)


def test_alibi_heads_stay_where_a_model_with_fewer_heads_has_the_same_slopes():
    # ALiBi's slope of head i of n (a power of two) is 2^(-8 (i + 1) / n).
    choice = Choice((dimension(alibi=True),), torch.rand(1, 8))
    for count in (8, 4, 2, 1):
        slopes = [2 ** (-8 * (position + 1) / 8) for position in choice.kept(count)]
        assert slopes == [2 ** (-8 * (index + 1) / count) for index in range(count)]
    assert choice.losses()[3] == float("inf")
    assert choice.losses()[4] == pytest.approx(float(choice.scores[0, 0::2].sum()))


def test_tied_dimensions_choose_by_the_sum_of_their_scores():
    structure = describe(tiny_model())
    tied = replace(
        structure,
        dimensions=tuple(replace(d, tied="all.heads") if d.kind == "heads" else d for d in structure.dimensions),
    )
    scores = {d.name: torch.rand(d.num_groups) for d in tied}
    scores["layers.0.heads"] = torch.tensor([3.0, 0.0, 2.0, 1.0])
    scores["layers.1.heads"] = torch.tensor([0.0, 4.0, 1.0, 1.5])
    found = choices(tied, scores)
    assert [len(choice.dimensions) for choice in found] == [2, 1, 1]
    assert found[0].kept(2) == [0, 1]
    assert found[0].parameters_per_step == 2 * 768


def test_protected_layers_have_no_choice():
    structure = describe(tiny_model(), keep_layers=[-1])
    scores = {d.name: torch.rand(d.num_groups) for d in structure}
    assert {choice.dimension.layer for choice in choices(structure, scores)} == {0}
