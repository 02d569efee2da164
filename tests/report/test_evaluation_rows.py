from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from loraprune.checkpoint.fingerprint import folder_fingerprint
from loraprune.measure.evaluation.results import Entry, Results, ResultsError
from loraprune.record.report_data import Completion, Headline, ReportData, Row, Unit
from loraprune.report.evaluation_rows import RunEntries, entry_rows, find_entries, with_entries

HEADLINE = Headline(
    ratio=0.5, target_ratio=0.5, total_before=9, total_after=5, prunable_before=8, prunable_after=4
)  # fmt: skip


def folder(path: Path, content: str) -> Path:
    """Something whose files can be hashed as those of a model."""
    path.mkdir()
    (path / "config.json").write_text(content)
    (path / "model.safetensors").write_text(content)
    return path


def entry(model: Path | str, fingerprint: str | None = None, **changes: Any) -> Entry:
    if fingerprint is None:
        fingerprint = folder_fingerprint(Path(model)) if Path(model).is_dir() else "commit:1"
    given: dict[str, Any] = {
        "kind": "perplexity",
        "name": "wikitext2",
        "settings": {"max_length": 64, "stride": None, "dtype": "float32", "device": "cpu"},
        "values": {"perplexity": 5.0, "num_tokens": 640},
    }
    return Entry(model=str(model), fingerprint=fingerprint, **(given | changes))


def results(path: Path, *entries: Entry) -> Path:
    path.write_text(Results(entries).to_text())
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return folder(tmp_path / "base", "dense")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return folder(tmp_path / "out", "pruned")


def report(**changes: Any) -> ReportData:
    return ReportData(title="t", model="base", created="", headline=HEADLINE, **changes)


class TestBelonging:
    def test_a_model_is_known_by_its_files_wherever_it_lies(self, tmp_path: Path, base: Path, run: Path) -> None:
        moved = [
            entry("gone/out", folder_fingerprint(run)),
            entry("elsewhere", folder_fingerprint(base)),
        ]
        found = find_entries(run, str(base), [results(tmp_path / "r.json", *moved)])
        assert (found.pruned, found.dense) == ([moved[0]], [moved[1]])

    def test_a_hub_name_is_known_by_its_name(self, tmp_path: Path, run: Path) -> None:
        dense = entry("maker/model")
        found = find_entries(run, "maker/model", [results(tmp_path / "r.json", dense)])
        assert found.dense == [dense]

    def test_the_file_in_the_folder_counts_by_itself(self, run: Path) -> None:
        results(run / "evaluation.json", entry(run))
        assert len(find_entries(run, "base", []).pruned) == 1

    def test_the_same_file_counts_once(self, run: Path) -> None:
        file = results(run / "evaluation.json", entry(run))
        assert len(find_entries(run, "base", [file]).pruned) == 1

    def test_results_of_a_folder_that_was_written_anew_are_stale(self, run: Path) -> None:
        results(run / "evaluation.json", entry(run))
        (run / "model.safetensors").write_text("another")
        found = find_entries(run, "base", [])
        assert found.pruned == []
        assert [stale.model for stale in found.stale[run / "evaluation.json"]] == [str(run)]

    def test_a_file_that_holds_nothing_of_the_run_is_refused_and_says_what_it_holds(
        self, tmp_path: Path, run: Path
    ) -> None:
        file = results(tmp_path / "r.json", entry("maker/other"), entry("maker/third"))
        with pytest.raises(ValueError, match=r"no results of .*out or .* maker/model\. .* maker/other, maker/third"):
            find_entries(run, "maker/model", [file])

    def test_a_named_file_of_an_older_state_of_the_run_is_refused(self, tmp_path: Path, run: Path) -> None:
        file = results(tmp_path / "r.json", entry(run))
        (run / "model.safetensors").write_text("another")
        with pytest.raises(ValueError, match="results of an earlier version of"):
            find_entries(run, "maker/model", [file])

    def test_results_of_another_version_are_refused(self, tmp_path: Path, run: Path) -> None:
        file = results(tmp_path / "r.json", entry(run))
        file.write_text(file.read_text().replace('"version": 1', '"version": 99'))
        with pytest.raises(ResultsError, match="version 99"):
            find_entries(run, "base", [file])


class TestRows:
    def both(self, dense: dict[str, Any], pruned: dict[str, Any]) -> RunEntries:
        return RunEntries(dense=[entry("base", **dense)], pruned=[entry("out", **pruned)])

    def test_figures_of_one_measure_stand_side_by_side(self) -> None:
        (row,) = entry_rows(self.both({}, {"values": {"perplexity": 6.0, "num_tokens": 640}}))
        assert row == Row(
            label="wikitext2@64", unit=Unit.PERPLEXITY, detail="perplexity, 640 tokens, float32", dense=5.0, pruned=6.0
        )

    def test_another_device_is_no_other_measure(self) -> None:
        settings = {"max_length": 64, "stride": None, "dtype": "float32", "device": "cuda"}
        assert len(entry_rows(self.both({}, {"settings": settings}))) == 1

    @pytest.mark.parametrize("name", ["max_length", "dtype"])
    def test_figures_that_were_measured_differently_are_never_compared(self, name: str) -> None:
        settings = {"max_length": 64, "stride": None, "dtype": "float32", name: 32}
        rows = entry_rows(self.both({}, {"settings": settings}))
        assert [(row.dense, row.pruned) for row in rows] == [(None, 5.0), (5.0, None)]

    def test_one_text_in_two_places_is_the_same_measure(self) -> None:
        sides = ({"data": {"source": f"{place}/t.txt", "sha256": "ab"}} for place in ("a", "b"))
        assert len(entry_rows(self.both(*sides))) == 1

    def test_the_newest_of_two_counts(self, tmp_path: Path, run: Path) -> None:
        old = entry(run, created="2026-01-01T00:00:00+00:00")
        new = entry(run, created="2026-02-01T00:00:00+00:00", values={"perplexity": 4.0})
        found = find_entries(run, "base", [results(tmp_path / "r.json", new, old)])
        assert [row.pruned for row in entry_rows(found)] == [4.0]

    def test_what_is_no_number_stays_so(self) -> None:
        (row,) = entry_rows(self.both({"values": {"perplexity": None}}, {"values": {"perplexity": math.inf}}))
        assert (row.dense, row.pruned) == (pytest.approx(math.nan, nan_ok=True), math.inf)

    def test_tasks_become_scores_with_an_average_over_those_that_both_have(self) -> None:
        def task(model: str, name: str, **values: float) -> Entry:
            return entry(model, kind="task", name=name, settings={}, values=values)

        entries = RunEntries(
            dense=[task("b", "piqa", acc=0.8, acc_norm=0.7, num_items=200), task("b", "boolq", acc=0.6)],
            pruned=[
                task("o", "piqa", acc=0.6, acc_norm=0.5, num_items=200),
                task("o", "boolq", acc=0.4),
                task("o", "arc_easy", acc=0.1),
            ],
        )
        scores = with_entries(report(), entries).scores
        found = [(row.label, row.detail, row.dense, row.pruned) for row in scores]
        assert found[:3] == [
            ("piqa", "acc_norm, 200 items", 0.7, 0.5),
            ("boolq", "acc", 0.6, 0.4),
            ("arc_easy", "acc", None, 0.1),
        ]
        averages = {row.label: (row.dense, row.pruned) for row in scores[3:]}
        assert averages["average of 2, acc"] == pytest.approx((0.7, 0.5))
        assert averages["average of 2, acc_norm"] == pytest.approx((0.65, 0.45))

    def test_made_again_a_report_holds_every_figure_once(self) -> None:
        entries = self.both({}, {})
        entries.dense += [entry("b", kind="task", name=name, settings={}, values={"acc": 0.5}) for name in "xy"]
        entries.pruned += [entry("o", kind="task", name=name, settings={}, values={"acc": 0.4}) for name in "xy"]
        own = Row(label="Held-out perplexity", unit=Unit.PERPLEXITY, dense=1.0, pruned=2.0)
        once = with_entries(report(rows=(own,)), entries)
        assert once.rows[0] == own
        assert with_entries(once, entries) == once

    def test_completions_of_both_models_stand_side_by_side(self) -> None:
        def texts(*pairs: tuple[str, str]) -> dict[str, Any]:
            listed = [{"prompt": prompt, "completion": text} for prompt, text in pairs]
            return {"kind": "completions", "name": "prompts", "values": {"completions": listed}}

        old = (Completion(prompt="p", dense="?", pruned="?"), Completion(prompt="own", dense="a", pruned="b"))
        found = with_entries(report(completions=old), self.both(texts(("p", "x")), texts(("p", "y"), ("q", "z"))))
        assert found.completions == (old[1], Completion(prompt="p", dense="x", pruned="y"))
