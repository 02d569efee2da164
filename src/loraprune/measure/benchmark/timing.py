"""Timing of calls in turns, so other load on the machine affects all of them equally."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from loraprune.calibration.progress import ProgressOf

Call = Callable[[], object]
"""Call to time."""


@dataclass(frozen=True, kw_only=True)
class TurnTaker:
    """One of several contenders timed in turns.

    Attributes:
        turn: context manager around a turn, not timed: it yields the call to time.
        device: device of the call.
        steps: number of equal steps in the call; times are per step.
    """

    turn: Callable[[], AbstractContextManager[Call]]
    device: torch.device
    steps: int = 1


@dataclass(frozen=True)
class Times:
    """Seconds of equal calls, in order."""

    seconds: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean time."""
        return statistics.fmean(self.seconds)

    @property
    def median(self) -> float:
        """Median time."""
        return statistics.median(self.seconds)

    @property
    def p95(self) -> float:
        """95th percentile, interpolated linearly like NumPy's."""
        if len(self.seconds) < 2:
            return self.seconds[0]
        return statistics.quantiles(self.seconds, n=20, method="inclusive")[-1]

    @property
    def least(self) -> float:
        """Minimum time."""
        return min(self.seconds)

    def over(self, reference: Times) -> float:
        """Return time as a share of a reference's: the median over the turns of the ratio within a turn.

        A slowdown of the machine that lasts longer than a turn affects both, so it cancels in the ratio.
        """
        return statistics.median(a / b for a, b in zip(self.seconds, reference.seconds, strict=True))


def wait_for(device: torch.device) -> None:
    """Wait until an accelerator has finished its queued work; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(
    contenders: Mapping[str, TurnTaker],
    *,
    repeats: int,
    warmup: int,
    progress: Callable[[], object] | None = None,
    clock: Callable[[], float] | None = None,
) -> dict[str, Times]:
    """Time calls in turns: the first call of each contender, then the second of each, and so on.

    Args:
        contenders: by name.
        repeats: timed calls of each.
        warmup: untimed calls of each before them.
        progress: called after every call, timed or not, for a display.
        clock: what reads the seconds; None: ``time.perf_counter``. ``time.process_time`` counts CPU time, which other
            work on a CPU changes less.
    """
    clock = clock or time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmup + repeats):
        for name, contender in contenders.items():
            with contender.turn() as call:
                wait_for(contender.device)
                start = clock()
                call()
                wait_for(contender.device)
                taken = clock() - start
            if turn >= warmup:
                seconds[name].append(taken / contender.steps)
            if progress is not None:
                progress()
    return {name: Times(tuple(values)) for name, values in seconds.items()}


# Number of calls in a benchmark, and its progress callback.


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Numbers of calls.

    Attributes:
        repeats: timed calls of each contender.
        warmup: calls before them.
        progress: called after every call, or None.
    """

    repeats: int
    warmup: int
    progress: ProgressOf | None = None

    def run(self, stage: str, contenders: Mapping[str, TurnTaker]) -> dict[str, Times]:
        """Time contenders in turns."""
        total = (self.repeats + self.warmup) * len(contenders)
        done = 0

        def progress() -> None:
            nonlocal done
            done += 1
            if self.progress is not None:
                self.progress(stage, done, total)

        if self.progress is not None:
            self.progress(stage, 0, total)
        return in_turns(contenders, repeats=self.repeats, warmup=self.warmup, progress=progress)
