"""Benchmark tasks: those of lm-eval, and local files scored in the same way."""

from loraprune.metrics.tasks.choosing import COMMONSENSE, GROUPS, ChosenTask, check_tasks
from loraprune.metrics.tasks.scores import Average, TaskScore, averages
from loraprune.metrics.tasks.scoring import LoadedTask, load_task, score_task, score_tasks, texts_of

__all__ = [
    "COMMONSENSE",
    "GROUPS",
    "Average",
    "ChosenTask",
    "LoadedTask",
    "TaskScore",
    "averages",
    "check_tasks",
    "load_task",
    "score_task",
    "score_tasks",
    "texts_of",
]
