"""The data of a report survives a file, and a file that is none is refused in plain words."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from tests.sample_reports import recovered_report

from loraprune.record.report_data import Importance, ReportData


def refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


def test_reading_returns_what_was_written(sample: ReportData, tmp_path: Path) -> None:
    sample.to_json(tmp_path / "report.json")
    assert ReportData.from_json(tmp_path / "report.json") == sample


def test_every_report_is_strict_json_and_reads_back_to_the_same_file(any_report: ReportData, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    any_report.to_json(first)
    json.loads(first.read_text(encoding="utf-8"), parse_constant=refuse)
    ReportData.from_json(first).to_json(second)
    assert first.read_bytes() == second.read_bytes()


def test_not_a_number_is_written_as_null_and_read_as_nan(sample: ReportData, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    history = (replace(sample.history[0], loss=math.inf, seconds=math.nan),)
    replace(sample, history=history).to_json(path)
    point = ReportData.from_json(path).history[0]
    assert math.isnan(point.loss)
    assert point.seconds is None


def test_settings_of_unknown_types_are_written_as_text(sample: ReportData, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    replace(sample, settings={"data": {"path": Path("a/b"), "names": ("x", "y"), "seed": None}}).to_json(path)
    assert ReportData.from_json(path).settings == {"data": {"path": "a/b", "names": ["x", "y"], "seed": None}}


def test_fields_of_later_versions_are_ignored(sample: ReportData, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    sample.to_json(path)
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**value, "mood": "good"}), encoding="utf-8")
    assert ReportData.from_json(path) == sample


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": None}, "title should be a string"),
        ({"rows": {}}, "rows should be a list"),
        ({"layers": [{"layer": 0, "kind": "heads", "total": True, "kept": 0}]}, r"layers\[0\].total should be a whole"),
        ({"headline": {}}, "headline.ratio is missing"),
        ({"rows": [{"label": "a", "unit": "miles", "dense": 1, "pruned": 1}]}, r"rows\[0\].unit is 'miles'"),
    ],
)
def test_a_wrong_field_is_named(sample: ReportData, tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "report.json"
    sample.to_json(path)
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**value, **change}), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        ReportData.from_json(path)


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.json cannot be read as a report"):
        ReportData.from_json(path)


def test_scores_and_flags_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 scores, but 1 kept"):
        Importance(kind="heads", layer=0, scores=(1.0, 2.0), kept=(True,))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    sample: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    sample.to_json(path)
    before = path.read_bytes()

    def fail(*_: object) -> NoReturn:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        replace(sample, title="new").to_json(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_an_earlier_version_is_that_of_a_run_that_prunes(sample: ReportData, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    sample.to_json(path)
    value = json.loads(path.read_text(encoding="utf-8"))
    for name in ("recovery", "before", "after"):
        del value[name]
    path.write_text(json.dumps(value), encoding="utf-8")
    assert ReportData.from_json(path) == sample


def test_a_report_of_recovery_is_read_as_it_was_written(tmp_path: Path) -> None:
    report = recovered_report()
    report.to_json(tmp_path / "report.json")
    assert ReportData.from_json(tmp_path / "report.json") == report
