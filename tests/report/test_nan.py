"""A figure that is not a number is shown as such, with its reason; a dash is for what was not measured."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from tests.models import tiny_model

from loraprune import PruneResult
from loraprune.measure.evaluation.results import Entry
from loraprune.metrics.perplexity import HeldOut, perplexity
from loraprune.record.codec import decode, encode
from loraprune.record.run_record import RunRecord
from loraprune.report.before_after import format_rows
from loraprune.report.evaluation import show_entries, task_notes
from loraprune.report.evaluation_rows import figure_of
from loraprune.report.from_record import report_of
from loraprune.report.page import render_report

REASON = (
    "The loss of the pruned model is not finite on 1 of 3 held-out segments, so its perplexity is not a number. "
    "The model gave NaN or infinite logits there."
)


@pytest.fixture
def record(finished: PruneResult) -> RunRecord:
    """A run whose result has no finite loss on one of three segments, as it is read from its file."""
    metrics = finished.run_record.metrics
    broken = replace(metrics.pruned, perplexity=math.nan, num_not_finite=1, num_segments=3)
    changed = replace(finished.run_record, metrics=replace(metrics, pruned=broken))
    return decode(RunRecord, encode(changed))


def test_the_row_stays_and_a_note_says_why(record: RunRecord) -> None:
    data = report_of(record)
    (row,) = [row for row in format_rows(data) if row.label == "Held-out perplexity"]
    assert (row.pruned, row.change) == ("NaN", "–")
    assert row.dense not in ("NaN", "–")
    assert REASON in data.notes


def test_the_page_says_it(record: RunRecord) -> None:
    page = render_report(report_of(record))
    assert ">NaN<" in page
    assert REASON in page


def test_a_finite_run_has_no_such_note(finished: PruneResult) -> None:
    assert not any("not finite" in note for note in report_of(finished.run_record).notes)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_segments_whose_loss_is_not_finite_are_counted(value: float) -> None:
    model = tiny_model("llama")
    odd = 7
    with torch.no_grad():
        model.get_input_embeddings().weight[odd] = value
    ids = torch.arange(8).repeat(3, 1) % 6
    ids[1, 3] = odd
    found = perplexity(model, HeldOut(sequences=[(row, row) for row in ids]))
    assert math.isnan(found.perplexity)
    assert (found.num_not_finite, found.num_segments) == (1, 3)
    whole = perplexity(model, HeldOut(sequences=[(ids[0], ids[0])]))
    assert (whole.num_not_finite, whole.num_segments) == (None, None)
    assert math.isfinite(whole.perplexity)


def entry(model: str, value: float | None) -> Entry:
    values = {"perplexity": value, "num_tokens": 10, "num_segments": 2}
    return Entry(model=model, fingerprint=model, kind="perplexity", name="wikitext2", values=values)


@pytest.mark.parametrize("value", [None, math.nan])  # as a file has it, and as it is measured
def test_an_evaluation_shows_it_with_a_note(value: float | None, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [entry("dense", 5.0), entry("pruned", value)]
    assert math.isnan(figure_of(entries[1], "perplexity"))
    show_entries(Console(width=160), entries)
    printed = capsys.readouterr().out
    assert "NaN" in printed
    assert "pruned: perplexity is not a number: wikitext2." in printed
    assert task_notes([("dense", entries[:1])]) == []


def test_what_was_not_measured_is_a_dash() -> None:
    assert figure_of(None, "perplexity") is None
    assert figure_of(SimpleNamespace(values={"accuracy": 0.5}), "perplexity") is None
