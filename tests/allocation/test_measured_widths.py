from __future__ import annotations

import pytest
from tests.models import tiny_model

from loraprune.allocation.measured_widths import search_widths
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Structure
from loraprune.structure.matching_widths import final_candidates, most_even
from loraprune.structure.widths import Widths, legal_widths, widest

HEADS = 16


@pytest.fixture(scope="module")
def structure() -> Structure:
    """Of a model with 16 KV heads."""
    sizes = {"hidden_size": 64, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": 4}
    return describe(tiny_model("llama", **sizes, intermediate_size=256))


def candidates(structure: Structure, ratio: float) -> list[Widths]:
    dense = {kind: widest(structure, kind) for kind in structure.kinds}
    return final_candidates(structure, dense, ratio, legal_widths(structure))


@pytest.mark.parametrize("best", range(4, HEADS + 1, 3))
def test_the_best_of_many_head_counts_is_found_in_a_few_trials(structure: Structure, best: int) -> None:
    legal = legal_widths(structure)
    trials = search_widths(structure, 0.3, legal, lambda widths: 1.0 + abs(widths["heads"] - best))
    reachable = {widths["heads"] for widths in candidates(structure, 0.3)}
    assert trials[0].widths["heads"] == min(reachable, key=lambda heads: abs(heads - best))
    assert len(trials) < len(reachable)
    assert [trial.divergence for trial in trials] == sorted(trial.divergence for trial in trials)


def test_it_is_never_worse_than_the_even_split_or_than_channels_alone(structure: Structure) -> None:
    found = candidates(structure, 0.3)
    rough = {widths["heads"]: (widths["heads"] * 7919) % 31 for widths in found}  # many valleys
    trials = search_widths(structure, 0.3, legal_widths(structure), lambda widths: rough[widths["heads"]])
    even = most_even(structure, found, 0.3, legal_widths(structure))
    assert trials[0].divergence <= min(rough[even["heads"]], rough[max(rough)])


def test_nothing_is_tried_where_there_is_no_choice() -> None:
    one_head = {"hidden_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16}
    structure = describe(tiny_model("llama", **one_head))

    def never(widths: Widths) -> float:
        raise AssertionError(widths)

    assert search_widths(structure, 0.2, legal_widths(structure), never) == ()
