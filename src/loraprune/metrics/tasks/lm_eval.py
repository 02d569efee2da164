"""lm-eval made quiet and reproducible: its index is read once, it prints nothing, and its random state is separate."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy
import torch
from transformers import set_seed


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Keep lm-eval and its libraries from printing."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    logger, init = logging.getLogger("lm_eval"), tqdm.__init__

    def silent(self: Any, *positional: Any, **named: Any) -> None:
        init(self, *positional, **{**named, "disable": True})

    level = logger.level
    logger.setLevel(logging.CRITICAL)
    tqdm.__init__ = silent  # no argument switches off some of lm-eval's progress bars
    try:
        yield
    finally:
        tqdm.__init__ = init
        logger.setLevel(level)


# A separate random state for the duration of a block.


@contextmanager
def own_random_numbers(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch, and restore their states afterwards."""
    python, arrays = random.getstate(), numpy.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        set_seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(arrays)


# lm-eval's index of tasks, read once.


@cache
def harness_tasks() -> Any:
    """Return lm-eval's ``TaskManager``. This takes some seconds, because it reads all task files."""
    from lm_eval.tasks import TaskManager

    with quiet_harness():
        return TaskManager()


def harness_index() -> Mapping[str, Any]:
    """Entries of lm-eval's tasks, groups and tags by name: ``kind``, ``cfg`` and, for a tag, its members ``tags``."""
    index: Mapping[str, Any] = harness_tasks().task_index
    return index
