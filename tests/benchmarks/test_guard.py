"""The guard saves figures and says which are worse. Nothing is timed here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from benchmarks.guard_record import Guarded, Measured, line, read_figures, save_figures, worse

from loraprune.measure.benchmark.timing import Times

ROOT = Path(__file__).resolve().parents[2]
TABLE = {
    "step": Guarded(what="ours / theirs", target=1.05, tolerance=0.1),
    "start": Guarded(what="first line", target=0.5, tolerance=0.5, unit="s"),
}


def test_a_ratio_is_the_median_of_the_turns_and_names_both_medians() -> None:
    found = Measured.ratio(Times((2.0, 9.0, 4.0)), Times((1.0, 3.0, 4.0)))
    assert found == Measured(value=2.0, over=(4.0, 3.0))
    assert line("step", TABLE["step"], found).endswith("ours / theirs (4 / 3)")


def test_a_line_says_whether_the_target_is_reached() -> None:
    assert "0.400s  target 0.5, reached" in line("start", TABLE["start"], Measured(value=0.4))
    assert "0.600s  target 0.5, missed" in line("start", TABLE["start"], Measured(value=0.6))


def test_figures_come_back_from_the_file_with_their_targets(tmp_path: Path) -> None:
    figures = {"step": Measured.of(3.0, 2.0), "start": Measured(value=0.25)}
    save_figures(tmp_path / "guard.json", figures, TABLE, {"created": "now"})
    saved = json.loads((tmp_path / "guard.json").read_text())
    assert saved["created"] == "now"
    assert saved["figures"]["step"] == {"value": 1.5, "over": [3.0, 2.0], "target": 1.05}
    assert read_figures(tmp_path / "guard.json") == figures


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"figures": {"step": {}}}'])
def test_a_file_without_figures_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=r"other\.json has no figures of benchmarks/guard\.py"):
        read_figures(tmp_path / "other.json")


def test_only_what_exceeds_its_tolerance_is_worse_with_a_line_each() -> None:
    before = {"step": Measured(value=1.0), "start": Measured(value=0.4)}
    assert list(worse({"step": Measured(value=1.1), "start": Measured(value=0.6)}, before, TABLE)) == []
    (found,) = worse({"step": Measured(value=1.2), "start": Measured(value=0.1)}, before, TABLE)
    assert found == "step: 1.200x was 1.000x, allowed are 1.100x (ours / theirs)"


def test_figures_of_one_run_only_are_not_compared() -> None:
    assert list(worse({"step": Measured(value=9.0)}, {"start": Measured(value=0.1)}, TABLE)) == []


def test_the_committed_figures_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    saved = read_figures(ROOT / "docs" / "results" / "guard.json")
    shown = {name: float(value) for name, value in re.findall(r"^\| `([\w-]+)` .*?\| ([\d.]+)(?: s)? \|", page, re.M)}
    assert shown.keys() == saved.keys()
    assert {name: round(found.value, 3) for name, found in saved.items()} == shown
