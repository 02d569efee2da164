"""Seconds of calls that take turns, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from loraprune.calibration.progress import ProgressOf

Call = Callable[[], object]
"""What is timed."""


@dataclass(frozen=True, kw_only=True)
class TurnTaker:
    """One of several that take turns.

    Attributes:
        turn: what surrounds a turn and is not timed: it is entered, gives the call to time, and is left again.
        device: that the call works on.
        steps: equal steps that the call consists of; times are those of one step.
    """

    turn: Callable[[], AbstractContextManager[Call]]
    device: torch.device
    steps: int = 1


@dataclass(frozen=True)
class Times:
    """Seconds of equal calls, in the order in which they were made."""

    seconds: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The average."""
        return statistics.fmean(self.seconds)

    @property
    def median(self) -> float:
        """Half of the calls took no longer."""
        return statistics.median(self.seconds)

    @property
    def p95(self) -> float:
        """95 % of the calls took no longer; linear between two calls, as NumPy's percentile is."""
        if len(self.seconds) < 2:
            return self.seconds[0]
        return statistics.quantiles(self.seconds, n=20, method="inclusive")[-1]

    @property
    def least(self) -> float:
        """The fastest call."""
        return min(self.seconds)

    def over(self, reference: Times) -> float:
        """Time as a share of a reference's: the median over the turns of the ratio within a turn.

        What slows the machine down for longer than a turn slows both, and the ratio within the turn does not see it.
        """
        return statistics.median(a / b for a, b in zip(self.seconds, reference.seconds, strict=True))


def wait_for(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given; a CPU never owes anything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(
    contenders: Mapping[str, TurnTaker], *, repeats: int, warmup: int, progress: Callable[[], object] | None = None
) -> dict[str, Times]:
    """Time calls that take turns: the first of each, then the second of each, and so on.

    Args:
        contenders: by name.
        repeats: timed calls of each.
        warmup: calls of each that come first and are not timed.
        progress: is called after every call, timed or not; for a display.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmup + repeats):
        for name, contender in contenders.items():
            with contender.turn() as call:
                wait_for(contender.device)
                start = time.perf_counter()
                call()
                wait_for(contender.device)
                taken = time.perf_counter() - start
            if turn >= warmup:
                seconds[name].append(taken / contender.steps)
            if progress is not None:
                progress()
    return {name: Times(tuple(values)) for name, values in seconds.items()}


# How often everything in a benchmark is timed, and who is told of it.


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How often.

    Attributes:
        repeats: timed calls of each contender.
        warmup: calls before them.
        progress: is told after every call, or None.
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
