from __future__ import annotations

from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from transformers import PretrainedConfig

from loraprune.data.labels import ModelLabels, find_column, label_numbers

ANIMALS = ModelLabels(count=3, numbers={"cat": 2, "dog": 0, "owl": 1})


def named(names: list[str], values: list[int]) -> Dataset:
    return Dataset.from_dict({"label": values}, features=Features(label=ClassLabel(names=names)))


def test_labels_are_read_from_a_config() -> None:
    config = PretrainedConfig(id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    assert ModelLabels.of(config) == ModelLabels(count=2, numbers={"no": 0, "yes": 1})


def test_numbers_stand_for_themselves() -> None:
    assert label_numbers(Dataset.from_dict({"label": [2, 0, 2]}), "label", ANIMALS) == {2: 2, 0: 0}


def test_names_stand_for_the_models_numbers() -> None:
    assert label_numbers(Dataset.from_dict({"label": ["cat", "dog"]}), "label", ANIMALS) == {"cat": 2, "dog": 0}


def test_classes_go_by_their_names_where_the_model_knows_them_all() -> None:
    assert label_numbers(named(["dog", "cat"], [0, 1]), "label", ANIMALS) == {0: 0, 1: 2}


def test_classes_go_by_their_numbers_where_the_model_lacks_a_name_even_if_the_rows_do_not_have_it() -> None:
    assert label_numbers(named(["dog", "cat", "fox"], [0, 1, 1]), "label", ANIMALS) == {0: 0, 1: 1}


def test_text_and_fractions_that_are_whole_numbers_count_as_such() -> None:
    assert label_numbers(Dataset.from_dict({"label": ["1", "2"]}), "label", ANIMALS) == {"1": 1, "2": 2}
    assert label_numbers(Dataset.from_dict({"label": [1.0]}), "label", ANIMALS) == {1.0: 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 3], r"Row 2: the column 'label' holds the label 3, but the model has 3 labels \(0 to 2\).*num_labels=4"),
        ([0, -1], r"Row 2: the column 'label' holds the label -1"),
        (
            ["cat", "fox"],
            r"Row 2: the column 'label' holds 'fox', which is not a label of the model.*: cat, dog, owl\.",
        ),
        ([0, None], r"Row 2: the column 'label' holds None; a label"),
        ([0.5], r"Row 1: the column 'label' holds 0\.5; a label"),
        ([[0, 1]], r"Row 1: the column 'label' holds a list; a classifier needs one label"),
    ],
)
def test_what_is_no_label_is_refused_with_its_row(values: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_numbers(Dataset.from_dict({"label": values}), "label", ANIMALS)


def test_the_first_of_several_columns_is_taken() -> None:
    rows = Dataset.from_dict(
        {"label": [1], "labels": [2]}, features=Features(label=Value("int8"), labels=Value("int8"))
    )
    assert find_column(rows, ("labels", "label")) == "labels"
    assert find_column(rows, ("class",)) is None
