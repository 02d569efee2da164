"""How often everything in a benchmark is timed, and who is told of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from loraprune.measure.benchmark.timing import Contender, Times, in_turns

Progress = Callable[[str, int, int], None]
"""Is told what is being timed, how many of its calls are done, and how many there are."""


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
    progress: Progress | None = None

    def run(self, stage: str, contenders: Mapping[str, Contender]) -> dict[str, Times]:
        """Time contenders in turns."""
        total = (self.repeats + self.warmup) * len(contenders)
        done = 0

        def told() -> None:
            nonlocal done
            done += 1
            if self.progress is not None:
                self.progress(stage, done, total)

        if self.progress is not None:
            self.progress(stage, 0, total)
        return in_turns(contenders, repeats=self.repeats, warmup=self.warmup, told=told)
