from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from loraprune.measure.evaluation import results
from loraprune.measure.evaluation.results import Entry, ResultsFile, read_results


def entry(name: str) -> Entry:
    return Entry(model="m", fingerprint="f", kind="task", name=name, values={"acc": 0.5})


def test_runs_that_write_at_the_same_time_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = results.write_text

    def slow(*given: Any) -> None:
        time.sleep(0.02)
        write(*given)

    monkeypatch.setattr(results, "write_text", slow)
    path = tmp_path / "e.json"

    def run(number: int) -> None:
        ResultsFile(path, force=False).add(entry(f"task {number}"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(8)))
    assert sorted(found.name for found in read_results(path).entries) == [f"task {number}" for number in range(8)]
    assert [file.name for file in tmp_path.iterdir()] == ["e.json"]


def test_a_file_that_is_damaged_meanwhile_stops_nothing_and_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "e.json"
    file = ResultsFile(path, force=False)
    file.add(entry("first"))
    path.write_text("{")
    with caplog.at_level(logging.WARNING, logger="loraprune"):
        assert file.find(entry("first").key) is None
        file.add(entry("second"))
    assert "second of m cannot be kept, only printed" in caplog.text
    assert (path.read_text(), file.num_kept) == ("{", 1)


def test_nor_does_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "write_text", full)
    ResultsFile(tmp_path / "e.json", force=False).add(entry("first"))
    assert "No space left on device" in caplog.text
