from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from loraprune.measure.benchmark import timing as turns
from loraprune.measure.benchmark.timing import Call, Times, TurnTaker, in_turns

CPU = torch.device("cpu")


def noting(name: str, notes: list[str], steps: int = 1) -> TurnTaker:
    @contextmanager
    def turn() -> Iterator[Call]:
        notes.append(f"enter {name}")
        yield lambda: notes.append(name)
        notes.append(f"leave {name}")

    return TurnTaker(turn=turn, device=CPU, steps=steps)


def test_contenders_take_turns_and_every_turn_is_entered_and_left() -> None:
    notes: list[str] = []
    progress: list[None] = []
    contenders = {name: noting(name, notes) for name in ("a", "b")}
    times = in_turns(contenders, repeats=2, warmup=1, progress=lambda: progress.append(None))
    one_turn = ["enter a", "a", "leave a", "enter b", "b", "leave b"]
    assert notes == one_turn * 3
    assert {name: len(found.seconds) for name, found in times.items()} == {"a": 2, "b": 2}
    assert len(progress) == 6


def test_only_the_call_is_timed_and_warm_up_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 100.0, 105.0, 109.0, 110.0, 112.0])
    monkeypatch.setattr(turns, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    times = in_turns({"only": noting("only", [], steps=4)}, repeats=2, warmup=1)
    assert times["only"].seconds == (1.0, 0.5)


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_statistics_are_those_of_numpy(count: int) -> None:
    values = np.random.default_rng(count).exponential(size=count)
    times = Times(tuple(values.tolist()))
    assert times.p95 == pytest.approx(np.percentile(values, 95))
    assert times.median == pytest.approx(np.median(values))
    assert times.mean == pytest.approx(values.mean())
    assert times.least == values.min()


def test_a_ratio_compares_within_a_turn_so_that_a_slow_machine_does_not_matter() -> None:
    # The machine is ten times slower in the last two of four turns, in the middle of a turn of nobody.
    reference, pruned = Times((2.0, 2.2, 20.0, 22.0)), Times((1.0, 1.1, 10.0, 11.0))
    assert pruned.over(reference) == pytest.approx(0.5)
