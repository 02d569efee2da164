"""lm-eval made quiet and repeatable: its index read once, its progress in our display, random numbers of its own."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy
import torch

from loraprune.calibration.progress import Progress

_WORK = ("Running loglikelihood requests", "Running generate_until requests")
"""The bars of lm-eval that go with the model's work; the others are over at once."""


class _SilentBar:
    """Stands in for a tqdm bar and prints nothing."""

    def __init__(
        self, iterable: Iterable[Any] | None = None, *_: Any, progress: Progress | None = None, **named: Any
    ) -> None:
        self._iterable = iterable if iterable is not None else ()
        self._told = progress if named.get("desc") in _WORK else None
        self._total = named.get("total") or 0
        self._done = 0
        self.update(0)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._iterable)

    def update(self, steps: int = 1) -> None:
        self._done += steps
        if self._told is not None:
            self._told(self._done, self._total)

    def close(self) -> None: ...


@contextmanager
def quiet_harness(progress: Progress | None = None) -> Iterator[None]:
    """Keep lm-eval from printing; ``progress`` hears how many requests a model has answered."""
    import datasets
    from tqdm import tqdm  # type: ignore[import-untyped]

    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()

    def silent(*positional: Any, **named: Any) -> _SilentBar:
        return _SilentBar(*positional, progress=progress, **named)

    # Some of its bars cannot be switched off by an argument; each module holds the class by name.
    modules = [module for name, module in sorted(sys.modules.items()) if name.startswith("lm_eval.")]
    patched = [module for module in modules if vars(module).get("tqdm") is tqdm]
    for module in patched:
        vars(module)["tqdm"] = silent
    try:
        yield
    finally:
        for module in patched:
            vars(module)["tqdm"] = tqdm
        if bars:
            datasets.enable_progress_bars()
        logger.setLevel(level)


# Random numbers of one's own for the length of a block.


@contextmanager
def own_random_numbers(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch, and put all of them back as they were."""
    python, arrays = random.getstate(), numpy.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        torch.manual_seed(seed)
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
