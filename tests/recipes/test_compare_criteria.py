from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import byte_model, tiny_tokenizer
from tests.finished_run import QUICK

from loraprune import ComparisonConfig, CriteriaComparison, compare_criteria
from loraprune.tasks.options import LoraOptions

TRAINING = {name: value for name, value in QUICK.items() if name != "max_steps"}


def compared(model: Any, data: Path, *, training: Any = None, **given: Any) -> CriteriaComparison:
    config = ComparisonConfig(**{"steps": 2, "ratios": (0.25, 0.5), **given.pop("config", {})})
    return compare_criteria(model, data, config, training={**TRAINING, **(training or {})}, **given)


@pytest.fixture(scope="module")
def comparison(checkpoint: Path, data: Path) -> CriteriaComparison:
    """With the default criteria; no test changes it."""
    return compared(checkpoint, data)


def test_every_pair_is_compared_for_every_kind_and_ratio(comparison: CriteriaComparison) -> None:
    found = {(row.first, row.second, row.kind, row.ratio) for row in comparison.rows}
    pairs = [("lora", "fisher"), ("lora", "taylor"), ("fisher", "taylor")]
    assert found == {(*pair, kind, ratio) for pair in pairs for kind in ("heads", "channels") for ratio in (0.25, 0.5)}
    for row in comparison.rows:
        assert row.shared is not None
        assert 0.0 <= row.shared <= 1.0
        assert row.by_chance == row.ratio
        assert row.layers == 2


def test_scores_of_all_groups_are_handed_out(comparison: CriteriaComparison) -> None:
    for scores in comparison.scores.values():
        for dimension in comparison.structure:
            assert scores[dimension.name].shape == (dimension.num_groups,)


def test_the_same_seed_gives_the_same_agreement(comparison: CriteriaComparison, checkpoint: Path, data: Path) -> None:
    assert compared(checkpoint, data).rows == comparison.rows


def test_the_result_is_plain_json_without_the_scores(comparison: CriteriaComparison) -> None:
    read = json.loads(json.dumps(comparison.to_json()))
    assert read["config"]["criteria"] == ["lora", "fisher", "taylor"]
    assert len(read["agreement"]) == len(comparison.rows)
    assert "scores" not in read


def test_nothing_is_cut_from_a_model_in_memory(data: Path) -> None:
    model = byte_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compared(model, data, tokenizer=tiny_tokenizer(), config={"criteria": ("fisher", "magnitude")})
    base = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    assert all(torch.equal(base[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"criteria": ("lora", "typo")}, "no criterion 'typo'"),
        ({"criteria": ("lora", "fisher", "lora")}, "'lora' is listed twice"),
        ({"criteria": ("lora",)}, "at least two criteria, and only 'lora'"),
        ({"criteria": ()}, "at least two criteria, and none"),
        ({"ratios": ()}, "at least one"),
        ({"ratios": (0.5, 1.0)}, "between 0 and 1"),
        ({"steps": 0}, "steps is 0; it must lie in"),
        ({"allocation": "best"}, "allocation is 'best'"),
        ({"average_decay": 1.0}, "average_decay is 1.0"),
        ({"criteria": ("lora", "fisher"), "taylor_form": "mix"}, "taylor_form is 'mix', an option of taylor, and"),
        ({"taylor_form": "third"}, "taylor_form is 'third'; choose one of"),
    ],
)
def test_a_wrong_value_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ComparisonConfig(**changes)


def test_criteria_that_learn_masks_are_refused() -> None:
    from loraprune.importance.configs import CRITERIA
    from loraprune.recipes.comparison_config import LEARNING

    for name in set(CRITERIA) & set(LEARNING):
        with pytest.raises(ValueError, match="learns its own masks"):
            ComparisonConfig(criteria=("lora", name))


def test_a_ratio_that_would_empty_a_layer_is_refused_before_training(checkpoint: Path, data: Path) -> None:
    with pytest.raises(ValueError, match="would empty a dimension"):
        compared(checkpoint, data, config={"ratios": (0.99,)})


def test_a_criterion_that_cannot_score_what_would_go_is_refused(checkpoint: Path, data: Path) -> None:
    with pytest.raises(ValueError, match="'position' ranks whole blocks"):
        compared(checkpoint, data, config={"criteria": ("fisher", "position")})


def test_a_second_way_to_say_the_number_of_steps_is_refused(checkpoint: Path, data: Path) -> None:
    with pytest.raises(ValueError, match=r"max_steps is not an option of a comparison.*--steps"):
        compared(checkpoint, data, training={"max_steps": 3})


def test_lora_needs_an_adapter_on_every_group_only_where_it_is_compared(checkpoint: Path, data: Path) -> None:
    lora = LoraOptions(target_modules=["q_proj"])
    with pytest.raises(ValueError, match="lora"):
        compared(checkpoint, data, lora=lora, config={"criteria": ("lora", "fisher")})
    rows = compared(checkpoint, data, lora=lora, config={"criteria": ("fisher", "magnitude")}).rows
    assert {row.kind for row in rows} == {"heads", "channels"}


def test_whole_blocks_are_compared_by_criteria_that_read_weights(data: Path) -> None:
    config = {"criteria": ("taylor", "lora", "magnitude", "fisher"), "dimensions": ("blocks",), "ratios": (0.5,)}
    found = compared(byte_model(num_hidden_layers=4), data, tokenizer=tiny_tokenizer(), config=config)
    assert {row.kind for row in found.rows} == {"blocks"}
    assert all(values.shape == (4,) for scores in found.scores.values() for values in scores.values())
