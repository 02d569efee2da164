"""Local task files as tasks of lm-eval: asked and scored as the harness' own tasks of the kind are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loraprune.metrics.tasks.tasks_local import Form, LocalTask

VERSION = 1.0
"""Of how local files are asked; goes up when a change of ours changes scores."""

_ACC = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
_ACC_NORM = {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}

# Columns are named as they are, not through templates, so that braces in a text stay what they are.
_ASKED: dict[Form, dict[str, Any]] = {
    Form.CHOICES: {
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [_ACC, _ACC_NORM],
    },
    # A number for the text and a text for the target is how lm-eval's own WinoGrande asks for one continuation of
    # several contexts. All answers have one length there, so that acc_norm would say nothing.
    Form.CONTEXTS: {
        "doc_to_text": "gold",
        "doc_to_choice": "contexts",
        "doc_to_target": "continuation",
        "metric_list": [_ACC],
    },
    Form.LETTERS: {
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [_ACC],
    },
}


def task_configs(name: str, subjects: Sequence[LocalTask]) -> list[dict[str, Any]]:
    """Configurations of one file, which is called ``name``, or of several, called as they are."""
    return [_task_config(name if len(subjects) == 1 else subject.name, subject) for subject in subjects]


def group_config(name: str) -> dict[str, Any]:
    """The configuration of a group whose accuracy is weighted by the sizes of its tasks, as that of MMLU is."""
    return {
        "group": name,
        "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}],
        "metadata": {"version": VERSION},
    }


def _task_config(name: str, task: LocalTask) -> dict[str, Any]:
    def data(**_: Any) -> Any:
        from datasets import Dataset, DatasetDict

        splits = {"test": Dataset.from_list([dict(row) for row in task.rows])}
        if task.examples:
            splits["dev"] = Dataset.from_list([dict(row) for row in task.examples])
        return DatasetDict(splits)

    return {
        "task": name,
        "custom_dataset": data,
        "test_split": "test",
        "fewshot_split": "dev" if task.examples else "test",
        "fewshot_config": {"sampler": "first_n" if task.examples else "default"},
        "output_type": "multiple_choice",
        "description": task.description,
        "target_delimiter": task.delimiter,
        "metadata": {"version": VERSION},
        **_ASKED[task.form],
    }
