from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from loraprune.pruning import phase_timer
from loraprune.pruning.phase_timer import PhaseTimer


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by one second at every look."""
    ticks: Iterator[int] = itertools.count()
    monkeypatch.setattr(phase_timer.time, "monotonic", lambda: float(next(ticks)))


def test_a_phase_counts_every_time_that_it_comes() -> None:
    clock = PhaseTimer()
    for _ in range(3):
        with clock.timed("a"):
            pass
    with clock.timed("b"):
        pass
    assert clock.seconds == {"a": 3.0, "b": 1.0}


def test_a_phase_that_fails_counts() -> None:
    clock = PhaseTimer()
    with pytest.raises(RuntimeError), clock.timed("a"):
        raise RuntimeError
    assert clock.seconds == {"a": 1.0}


def test_laps_leave_no_gap() -> None:
    clock = PhaseTimer()
    clock.begin()
    assert [clock.lap("a"), clock.lap("b"), clock.lap("a")] == [1.0, 1.0, 1.0]
    assert clock.seconds == {"a": 2.0, "b": 1.0}


def test_an_interrupted_run_comes_first_and_adds_up() -> None:
    clock = PhaseTimer()
    clock.add("loading", 2.0)
    clock.take_over({"loading": 10.0, "training": 5.0})
    clock.add("training", 1.0)
    clock.add("writing", 1.0)
    assert clock.seconds == {"loading": 12.0, "training": 6.0, "writing": 1.0}
    assert list(clock.seconds) == ["loading", "training", "writing"]
    assert clock.earlier == 15.0
