"""Plans by scores of a user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.models import tiny_model

from loraprune import describe, plan_for

STRUCTURE = describe(tiny_model(intermediate_size=64))


def ascending() -> dict[str, Any]:
    return {dimension.name: torch.arange(dimension.num_groups) for dimension in STRUCTURE}


@pytest.mark.parametrize("allocation", ["uniform", "balanced", "global"])
def test_the_groups_of_the_highest_scores_stay(allocation: str) -> None:
    plan = plan_for(STRUCTURE, ascending(), 0.5, allocation=allocation, channel_multiple=1, head_counts="any")
    assert plan.ratio(STRUCTURE) == pytest.approx(0.5, abs=0.02)
    for dimension in STRUCTURE:
        kept = plan.kept[dimension.name]
        assert kept == tuple(range(dimension.num_groups - len(kept), dimension.num_groups))


def test_scores_may_be_plain_numbers() -> None:
    lists = {name: values.tolist() for name, values in ascending().items()}
    assert plan_for(STRUCTURE, lists, 0.3) == plan_for(STRUCTURE, ascending(), 0.3)


def changed(**values: Any) -> Callable[[], dict[str, Any]]:
    return lambda: ascending() | {name.replace("_", "."): value for name, value in values.items()}


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        (dict, {}, "Scores are missing for layers.0.channels"),
        (changed(nowhere=[1.0]), {}, "The structure has no dimension 'nowhere'"),
        (changed(layers_0_heads=[1.0, 2.0]), {}, r"layers.0.heads have shape \(2,\), but it has 4 groups"),
        (changed(layers_0_heads=[1.0, 2.0, float("nan"), 0.0]), {}, "layers.0.heads are not all finite"),
        (ascending, {"ratio": 0.99}, "would empty a dimension"),
        (ascending, {"ratio": 1.5}, "ratio is 1.5"),
        (ascending, {"allocation": "fair"}, "allocation is 'fair'"),
        (ascending, {"head_counts": "some"}, "head_counts is 'some'"),
    ],
)
def test_what_is_wrong_with_scores_is_said(scores: Callable[[], Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_for(STRUCTURE, scores(), **{"ratio": 0.3, **options})
