"""When to cut and how far: a sparsity schedule as a list of cuts."""

from __future__ import annotations

from dataclasses import dataclass

from loraprune.options.field import check_fields, setting


@dataclass(frozen=True)
class ScheduledCut:
    """A cut: after optimizer step ``step``, the sparsity ratio is raised to ``ratio``.

    Steps are counted from 1; step 0 means a cut before the first step.
    """

    step: int
    ratio: float


def cubic_ratio(progress: float, target: float) -> float:
    """Sparsity ratio after a share ``progress`` in [0, 1] of the pruning phase: fast at first, slow at the end.

    Source: Zhu and Gupta 2017 (arXiv 1710.01878, Eq. 1), as in the public LoRAPrune code.
    """
    progress = min(max(progress, 0.0), 1.0)
    return target * (1.0 - (1.0 - progress) ** 3)


def cut_schedule(
    *, total_steps: int, start: float, end: float, cuts: int, ratio: float, every: int | None = None
) -> list[ScheduledCut]:
    """Spread ``cuts`` cuts evenly between two fractions of the run, with cubic ratios, or cut every ``every`` steps.

    The first cut is at ``start`` of the run. The last one, at ``end``, reaches ``ratio`` exactly. If a run is too short
    for all cuts, several fall on one step, which takes the largest ratio.

    Args:
        total_steps: optimizer steps of the whole run.
        start: fraction of the run before the first cut, in [0, end].
        end: fraction of the run at which pruning ends, in [start, 1]; 0 cuts everything before the first step.
        cuts: number of cuts, at least 1. A single cut is at ``end``.
        ratio: final sparsity ratio, in [0, 1); 0 returns no cuts.
        every: optimizer steps from one cut to the next, instead of a number of cuts; the last interval may be shorter.

    Raises:
        ValueError: a value is out of its range.
    """
    if total_steps < 1:
        raise ValueError(f"A run needs at least one step, not {total_steps}.")
    if not 0.0 <= start <= end <= 1.0:
        raise ValueError(f"The pruning phase runs from {start} to {end}. Choose 0 <= start <= end <= 1.")
    if cuts < 1:
        raise ValueError(f"The number of cuts is {cuts}; at least one is needed.")
    if every is not None and every < 1:
        raise ValueError(f"A cut every {every} steps is not possible. Choose at least 1.")
    if not 0.0 <= ratio < 1.0:
        raise ValueError(f"The sparsity ratio is {ratio}. Choose a value in [0, 1).")
    if ratio == 0.0:
        return []
    if end == 0.0:
        return [ScheduledCut(0, ratio)]
    last = max(1, round(end * total_steps))
    first = min(max(1, round(start * total_steps)), last)
    if every is not None:
        steps = [*range(first, last, every), last]
    else:
        steps = [first + round((index / (cuts - 1) if cuts > 1 else 1.0) * (last - first)) for index in range(cuts)]
    by_step = {step: cubic_ratio(index / len(steps), ratio) for index, step in enumerate(steps, 1)}
    return [ScheduledCut(step, by_step[step]) for step in sorted(by_step)]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When a run cuts.

    Attributes:
        start: fraction of the run before the first cut.
        end: fraction of the run at which the last cut is made; the rest is recovery. 0 cuts everything before the
            first step, by scores on calibration data, as :func:`loraprune.oneshot` does; ``osscar`` is then available
            as a criterion. None means 0.3, or 0 with ``start=0, cuts=1``.
        cuts: number of cuts between the two, with ratios on a cubic curve; before the first step, in equal parts.
        every: optimizer steps from one cut to the next, instead of a number of cuts.
    """

    start: float = setting(0.1, "time of the first cut, as a fraction of the run", flat="prune_start")
    end: float = setting(
        None,
        "time of the last cut, as a fraction of the run; 0 cuts before training, as oneshot does",
        flat="prune_end",
        shown="0.3; 0 with --prune-start 0 --cuts 1",
    )
    cuts: int = setting(5, "number of cuts", within="[1, 1000000]")
    every: int | None = setting(
        None, "optimizer steps between two cuts, instead of --cuts", flat="cut_every", within="[1, inf)"
    )

    def __post_init__(self) -> None:
        if self.end is None:
            object.__setattr__(self, "end", 0.0 if self.start == 0 and self.cuts == 1 and self.every is None else 0.3)
        check_fields(self)
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise ValueError(
                f"prune_start is {self.start} and prune_end is {self.end}. Both are fractions of the run: choose "
                "0 <= prune_start <= prune_end <= 1."
            )
        if self.before_training and self.every is not None:
            raise ValueError("With prune_end=0 all is cut before the first step. Pass cuts instead of cut_every.")

    @property
    def before_training(self) -> bool:
        """Whether everything is cut before the first step."""
        return self.end == 0.0

    def cut_times(self, total_steps: int, ratio: float) -> list[ScheduledCut]:
        """See :func:`cut_schedule`."""
        return cut_schedule(
            total_steps=total_steps, start=self.start, end=self.end, cuts=self.cuts, ratio=ratio, every=self.every
        )
