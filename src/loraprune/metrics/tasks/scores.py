"""Task scores of a model, and averages over tasks that name the tasks they cover."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from loraprune.metrics.tasks.choosing import COMMONSENSE


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Scores of one task, or of a group of the harness with its tasks.

    Attributes:
        name: name of the task.
        version: the harness's version of the task; scores of two versions are not comparable.
        num_fewshot: examples before each question; None if the tasks of a group differ.
        num_items: number of scored items.
        values: by metric, with standard errors: ``acc`` (the choice with the highest log-likelihood), ``acc_norm`` (the
            same for log-likelihood per character of the choice), ``acc_stderr`` ...; as shares of one. NaN if the model
            returned NaN.
        chance: accuracy of guessing, for tasks with choices.
        num_tied: for tasks with choices, items in which several choices share the highest log-likelihood; the first one
            counts.
        num_requests: number of requested log-likelihoods; None for a subtask, like the next two.
        num_truncated: number of requests too long for the model, truncated at their beginning.
        num_not_finite: number of log-likelihoods that were NaN; if there are any, all scores are NaN.
        group: group that the task was chosen by.
        subtasks: tasks of a group.
    """

    name: str
    version: str | None = None
    num_fewshot: int | None = None
    num_items: int = 0
    values: Mapping[str, float] = field(default_factory=dict)
    chance: float | None = None
    num_tied: int | None = None
    num_requests: int | None = None
    num_truncated: int | None = None
    num_not_finite: int | None = None
    group: str | None = None
    subtasks: Sequence[TaskScore] = ()

    def to_values(self) -> dict[str, Any]:
        """All fields except the name as plain values, the metrics first."""
        rest = asdict(self)
        del rest["name"], rest["values"], rest["subtasks"]
        values = {**self.values, **{name: value for name, value in rest.items() if value is not None}}
        if self.subtasks:
            values["subtasks"] = {subtask.name: subtask.to_values() for subtask in self.subtasks}
        return values


@dataclass(frozen=True, kw_only=True)
class Average:
    """A mean over tasks.

    Attributes:
        tasks: description of the tasks, to be printed: ``"average of 5"``.
        metric: scores in the mean: ``acc``; ``acc_norm`` if a task has it, else acc; or ``paper``, the metric of each
            task that we assume in LoRAPrune's table (:data:`PAPER_METRICS`).
        value: the mean, NaN if one of the scores is.
        metrics: metric used for each task.
    """

    tasks: str
    metric: str
    value: float
    metrics: Mapping[str, str]


# An assumption: the LoRAPrune paper does not say which accuracy its tables show. These are the ones that fit
# LLM-Pruner's table in github.com/horseee/LLM-Pruner/issues/25, with which LoRAPrune's compares itself.
PAPER_METRICS = {
    "boolq": "acc",
    "piqa": "acc",
    "hellaswag": "acc_norm",
    "winogrande": "acc",
    "arc_easy": "acc",
    "arc_challenge": "acc_norm",
    "openbookqa": "acc_norm",
}


def averages(values_by_task: Mapping[str, Mapping[str, Any]]) -> list[Average]:
    """Return means over the tasks that have an accuracy, without groups of the harness such as MMLU.

    There is no mean over fewer than two tasks. If all seven tasks of ``commonsense`` are present, the means cover
    these, and there is a third mean by :data:`PAPER_METRICS`.

    Args:
        values_by_task: values of each task, as :meth:`TaskScore.to_values` returns them.
    """
    tasks = {name: values for name, values in values_by_task.items() if "acc" in values and "subtasks" not in values}
    if all(name in tasks for name in COMMONSENSE):
        tasks = {name: tasks[name] for name in COMMONSENSE}
    if len(tasks) < 2:
        return []
    what = "average of the seven" if set(tasks) == set(COMMONSENSE) else f"average of {len(tasks)}"
    normalized = {name: "acc_norm" if "acc_norm" in values else "acc" for name, values in tasks.items()}
    found = [_mean(what, "acc", tasks, dict.fromkeys(tasks, "acc"))]
    if "acc_norm" in normalized.values():
        found.append(_mean(what, "acc_norm", tasks, normalized))
        if set(tasks) == set(COMMONSENSE):
            found.append(_mean(what, "paper", tasks, PAPER_METRICS))
    return found


def _mean(what: str, metric: str, tasks: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, str]) -> Average:
    scores = [tasks[name].get(metrics[name]) for name in tasks]
    finite = [score for score in scores if score is not None and math.isfinite(score)]
    value = sum(finite) / len(finite) if len(finite) == len(scores) else math.nan
    return Average(tasks=what, metric=metric, value=value, metrics=dict(metrics))
