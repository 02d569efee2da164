"""The figures of ``benchmarks/guard.py`` as a file, and their comparison with those of an earlier run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loraprune.measure.benchmark.timing import Times


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """What a figure is, and how far it may move.

    Attributes:
        what: description for the table, "a / b" for a ratio.
        target: value to reach.
        tolerance: share by which a figure may exceed that of an earlier run.
        unit: ``x`` for a ratio, ``s`` for seconds of CPU time.
    """

    what: str
    target: float
    tolerance: float
    unit: str = "x"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A figure: a ratio from one run, or seconds.

    Attributes:
        value: the ratio, the median over the turns of the ratio within a turn; or the median seconds.
        over: numerator and denominator of a ratio, each a median by itself.
    """

    value: float
    over: tuple[float, float] | None = None

    @classmethod
    def ratio(cls, numerator: Times, denominator: Times) -> Measured:
        """The ratio of two contenders that took turns."""
        return cls(value=numerator.over(denominator), over=(numerator.median, denominator.median))

    @classmethod
    def of(cls, numerator: float, denominator: float) -> Measured:
        """The ratio of two quantities."""
        return cls(value=numerator / denominator, over=(numerator, denominator))


Figures = dict[str, Measured]
"""Figures by name."""


def line(name: str, guarded: Guarded, found: Measured) -> str:
    """One line of the table: name, value, target, and what was divided."""
    parts = "" if found.over is None else f"({found.over[0]:.4g} / {found.over[1]:.4g})"
    reached = "reached" if found.value <= guarded.target else "missed"
    shown = f"{found.value:.3f}{guarded.unit}"
    return f"{name:16} {shown:>9}  target {guarded.target:g}, {reached:8} {guarded.what} {parts}".rstrip()


def save_figures(path: Path, figures: Mapping[str, Measured], table: Mapping[str, Guarded], facts: Any) -> None:
    """Write figures, with their targets and the circumstances of the run."""
    rows = {name: asdict(found) | {"target": table[name].target} for name, found in figures.items()}
    path.write_text(json.dumps({**facts, "figures": rows}, indent=1) + "\n", encoding="utf-8")


def read_figures(path: Path) -> Figures:
    """Read back what :func:`save_figures` wrote.

    Raises:
        ValueError: the file has no figures.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["figures"]
        return {
            name: Measured(value=row["value"], over=None if row["over"] is None else tuple(row["over"]))
            for name, row in rows.items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has no figures of benchmarks/guard.py: {error!r}") from error


def worse(now: Mapping[str, Measured], before: Mapping[str, Measured], table: Mapping[str, Guarded]) -> Iterator[str]:
    """A line for each figure that exceeds its earlier value by more than its tolerance.

    Figures that only one of the runs has are not compared, so that a part of the guard can be run alone.
    """
    for name in table:
        if name in now and name in before:
            limit = before[name].value * (1 + table[name].tolerance)
            if now[name].value > limit:
                unit = table[name].unit
                yield (
                    f"{name}: {now[name].value:.3f}{unit} was {before[name].value:.3f}{unit}, "
                    f"allowed are {limit:.3f}{unit} ({table[name].what})"
                )
