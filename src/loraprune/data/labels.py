"""Labels of examples as output numbers of a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig

LABEL_COLUMNS = ("labels", "label")


def find_column(dataset: Dataset, names: tuple[str, ...]) -> str | None:
    """Return the first of ``names`` that is a column of the dataset, or None."""
    return next((name for name in names if name in dataset.column_names), None)


@dataclass(frozen=True, kw_only=True)
class ModelLabels:
    """The labels of a classifier.

    Attributes:
        count: number of outputs.
        numbers: output number of each label name.
    """

    count: int
    numbers: Mapping[str, int]

    @classmethod
    def of(cls, config: PretrainedConfig) -> ModelLabels:
        """Read the labels from a config."""
        names = config.label2id or {}
        return cls(count=int(config.num_labels or 0), numbers={str(name): int(value) for name, value in names.items()})


def label_numbers(dataset: Dataset, column: str, labels: ModelLabels) -> dict[Any, int]:
    """Map each value of a label column to an output of the classifier.

    Text is the name of a label. The classes of a ``ClassLabel`` column are matched by name if the model knows all
    their names, otherwise by number.

    Args:
        dataset: dataset with the column.
        column: name of the column.
        labels: labels of the model.

    Returns:
        The output number of each value that occurs.

    Raises:
        ValueError: a value is not a label of the model; the message names the row.
    """
    feature = dataset.features[column]
    titles: dict[Any, str] = {}
    from datasets import ClassLabel  # late: it takes a second to import

    if isinstance(feature, ClassLabel) and set(feature.names) <= set(labels.numbers):
        titles = dict(enumerate(feature.names))
    found: dict[Any, int] = {}
    values = dataset.select_columns([column]).with_format(None)[:][column]
    for row, value in enumerate(values, start=1):
        if isinstance(value, (list, dict)):
            raise ValueError(
                f"Row {row}: the column {column!r} holds a {type(value).__name__}; a classifier needs one label per "
                "row."
            )
        if value not in found:
            title = titles.get(value, value)
            found[value] = labels.numbers[title] if title in labels.numbers else _number(title, row, column, labels)
    return found


def _number(value: Any, row: int, column: str, labels: ModelLabels) -> int:
    """Check a label that is not a known name, and return its number."""
    where = f"Row {row}: the column {column!r} holds"
    if isinstance(value, str) and not value.strip().isdecimal():
        known = ", ".join(list(labels.numbers)[:12])
        raise ValueError(f"{where} {value!r}, which is not a label of the model. Its labels are: {known}.")
    # CSV files hold only text; tables with missing values hold whole numbers as floats.
    if not (isinstance(value, (str, bool, Integral)) or (isinstance(value, float) and value.is_integer())):
        raise ValueError(f"{where} {value!r}; a label must be a whole number.")
    number = int(value)
    if not 0 <= number < labels.count:
        raise ValueError(
            f"{where} the label {number}, but the model has {labels.count} labels (0 to {labels.count - 1}). Load the "
            f"model with num_labels={max(number + 1, 2)} or more, or number the labels from 0."
        )
    return number
