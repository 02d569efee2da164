"""Time of a run, in seconds by phase."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

LOADING = "loading"
DENSE = "measuring the dense model"
PREPARING = "preparing to train"
BASE = "measuring the model before"
BEFORE_CUTS = "training before the cuts"
BETWEEN_CUTS = "training between cuts"
CUTTING = "cutting and repairing"
MASKING = "choosing masks"
AFTER_CUTS = "training after the cuts"
TRAINING = "training"
SCORING_AND_CUTTING = "scoring, cutting and repairing"
ZEROING = "making weights zero"
MERGING = "merging"
RESULT = "measuring the result"
WRITING = "writing"
"""Names of phases in reports."""


class PhaseTimer:
    """A clock that counts time by phase.

    Attributes:
        seconds: seconds by phase, in the order of first use, with those of an interrupted run.
        earlier: seconds among them that an interrupted run had spent.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.earlier = 0.0
        self._mark: float | None = None

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the time of a ``with`` block."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(phase, time.monotonic() - started)

    def add(self, phase: str, seconds: float) -> None:
        """Add seconds to a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def begin(self, before: str | None = None) -> None:
        """Set the mark from which :meth:`lap` counts; ``before`` is the phase of the time since an earlier mark."""
        if before is not None and self._mark is not None:
            self.lap(before)
        self._mark = time.monotonic()

    def lap(self, phase: str) -> float:
        """Count the time since the last mark, set a new mark, and return the time."""
        now = time.monotonic()
        seconds = 0.0 if self._mark is None else now - self._mark
        self._mark = now
        self.add(phase, seconds)
        return seconds

    def take_over(self, earlier: Mapping[str, float]) -> None:
        """Add the time that an interrupted run had spent up to its saved state."""
        mine, self.seconds = self.seconds, dict(earlier)
        self.earlier += sum(earlier.values())
        for phase, seconds in mine.items():
            self.add(phase, seconds)
