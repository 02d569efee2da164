"""Tasks of lm-eval, loaded: their data, prompts and metrics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loraprune.metrics.tasks.choosing import ChosenTask
from loraprune.metrics.tasks.configs import group_config, task_configs
from loraprune.metrics.tasks.harness import harness_tasks
from loraprune.metrics.tasks.lm_eval import quiet_harness
from loraprune.metrics.tasks.random_numbers import own_random_numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedTask:
    """A task with its data; serves for any number of models, one after the other.

    Attributes:
        chosen: what was asked for.
        harness: as lm-eval's ``TaskManager.load`` gives it: ``tasks``, ``groups`` and ``group_map``.
        data: what is asked, as of ``chosen``; of a task of the harness with a hash of the items, which may change on
            the hub.
    """

    chosen: ChosenTask
    harness: dict[str, Any]
    data: Mapping[str, Any]


def load_task(chosen: ChosenTask) -> LoadedTask:
    """Build a task; one of the harness fetches its data from the hub or its cache, a local file needs neither.

    Raises:
        ValueError: the harness cannot load it, for want of a network or of a package that it needs.
    """
    with quiet_harness(), own_random_numbers(0):
        try:
            loaded = _of_files(chosen) if chosen.subjects else harness_tasks().load([chosen.name])
            data = chosen.data if chosen.subjects else {**chosen.data, "sha256": _digest(loaded["tasks"])}
        except Exception as error:  # whatever one of thousands of tasks of the harness raises
            reason = str(error).strip().splitlines()
            raise ValueError(
                f"The task {chosen.name} cannot be loaded: {reason[0] if reason else type(error).__name__}. Its data "
                "comes from the hub; without a network, name a local file with items (docs/evaluation-tasks.md)."
            ) from error
    return LoadedTask(chosen=chosen, harness=dict(loaded), data=data)


def _digest(tasks: Mapping[str, Any]) -> str:
    """SHA-256 of all items that are scored."""
    digest = hashlib.sha256()
    for name in sorted(tasks):
        digest.update(f"{name}\0".encode())
        for item in tasks[name].eval_docs:
            digest.update(json.dumps(item, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def _of_files(chosen: ChosenTask) -> Any:
    from lm_eval.api.group import Group
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    loaded = manager.load(task_configs(chosen.name, chosen.subjects))
    if len(chosen.subjects) == 1:
        return loaded
    group = Group.from_config(group_config(chosen.name))
    for task in loaded["tasks"].values():
        group.add(task)
    return manager.load([group])
