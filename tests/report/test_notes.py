from __future__ import annotations

from loraprune.record.pruning_course import NormsRecord, PruningCourse
from loraprune.record.run_record import RunMetrics
from loraprune.report.notes import notes_on_norms


def note(before: float, after: float, steps: int = 32) -> str:
    norms = NormsRecord(steps=steps, before=before, after=after)
    course = PruningCourse(
        ratio=0.5,
        target_ratio=0.5,
        parameters_before=100,
        parameters=60,
        prunable_parameters_before=80,
        prunable_parameters=40,
        norms=norms,
    )
    (text,) = notes_on_norms(RunMetrics(pruning=course))
    return text


def test_divergences_have_as_many_digits_as_tell_them_apart() -> None:
    assert "from 1.47 to 1.18 nats" in note(1.4711, 1.1822)
    assert "from 0.1363 to 0.1357 nats" in note(0.13632, 0.13571)


def test_norms_that_stay_are_said_to_stay() -> None:
    assert note(1.4711, 1.4711, steps=0).startswith("The norms are unchanged")
