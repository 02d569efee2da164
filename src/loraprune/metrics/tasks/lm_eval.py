"""lm-eval made quiet and repeatable: its index read once, nothing printed, random numbers of its own."""

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
    """Keep lm-eval and the libraries below it from printing."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    logger, init = logging.getLogger("lm_eval"), tqdm.__init__

    def silent(self: Any, *positional: Any, **named: Any) -> None:
        init(self, *positional, **{**named, "disable": True})

    level = logger.level
    logger.setLevel(logging.CRITICAL)
    tqdm.__init__ = silent  # some of lm-eval's bars cannot be switched off by an argument
    try:
        yield
    finally:
        tqdm.__init__ = init
        logger.setLevel(level)


# Random numbers of one's own for the length of a block.


@contextmanager
def own_random_numbers(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch, and put all of them back as they were."""
    python, arrays = random.getstate(), numpy.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        set_seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(arrays)


# What lm-eval has: its index of tasks, read once.


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
