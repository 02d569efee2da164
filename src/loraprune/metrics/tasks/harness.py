"""What lm-eval has: its index of tasks, read once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from loraprune.metrics.tasks.lm_eval import quiet_harness


@cache
def harness_tasks() -> Any:
    """lm-eval's ``TaskManager``; takes some seconds, since it reads all of its task files."""
    from lm_eval.tasks import TaskManager

    with quiet_harness():
        return TaskManager()


def harness_index() -> Mapping[str, Any]:
    """Entries of lm-eval's tasks, groups and tags by name: ``kind``, ``cfg`` and of a tag ``tags``, its members."""
    index: Mapping[str, Any] = harness_tasks().task_index
    return index
