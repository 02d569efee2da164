from __future__ import annotations

import pytest

from loraprune.record.pruning_course import NormsRecord, PruningCourse
from loraprune.record.run_record import RunMetrics
from loraprune.report.notes import notes_on_norms

LOWERED = "32 steps on the norms lowered the KL divergence from the dense model from "
KEPT = "The norms are unchanged: tuning them did not lower the KL divergence from the dense model ("
HELD_BACK = "on calibration rows that were held back"


def notes(norms: NormsRecord | None) -> tuple[str, ...]:
    course = PruningCourse(
        ratio=0.5,
        target_ratio=0.5,
        parameters_before=100,
        parameters=60,
        prunable_parameters_before=80,
        prunable_parameters=40,
        norms=norms,
    )
    return notes_on_norms(RunMetrics(pruning=course))


@pytest.mark.parametrize(
    ("steps", "before", "after", "sentence"),
    [
        (32, 1.4711, 1.1822, f"{LOWERED}1.47 to 1.18 nats per token, {HELD_BACK}."),
        (32, 0.13632, 0.13571, f"{LOWERED}0.1363 to 0.1357 nats per token, {HELD_BACK}."),
        (32, 0.1234567, 0.1234561, f"{LOWERED}0.123457 to 0.123456 nats per token, {HELD_BACK}."),
        (0, 1.4711, 1.4711, f"{KEPT}1.47 nats per token, {HELD_BACK})."),
        (0, 1.4711, 1.4722, f"{KEPT}1.471 nats per token, {HELD_BACK})."),
    ],
)
def test_the_sentence_names_both_divergences(steps: int, before: float, after: float, sentence: str) -> None:
    assert notes(NormsRecord(steps=steps, before=before, after=after)) == (sentence,)


def test_without_steps_on_the_norms_nothing_is_written() -> None:
    assert notes(None) == ()
    assert notes_on_norms(RunMetrics()) == ()
