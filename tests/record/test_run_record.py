"""A record is read as it was written, and records of earlier versions tell what they told."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoints import byte_model

from loraprune.record.codec import encode
from loraprune.record.pruning_course import PruningCourse
from loraprune.record.report_data import ReportData
from loraprune.record.run_record import Machine, ModelMeasures, RunMetrics, RunRecord, Settings, SparsityCourse
from loraprune.report.card import card_of
from loraprune.report.comparison.compare import compare_runs
from loraprune.report.from_record import report_of
from loraprune.structure.describe import describe

OLDER = Path(__file__).parent / "older_runs"
RUNS = ("groups", "joint", "pst", "recovered", "sparse")


def same(one: Any, other: Any) -> bool:
    """Whether two records are equal, NaN and NaN too."""
    return repr(one) == repr(other)


def parts_of_card(card: str) -> tuple[dict[str, Any], str]:
    """What the Hub reads of a card, and the text for people."""
    _, metadata, text = card.split("---\n", 2)
    return yaml.safe_load(metadata), text


class TestOlderRuns:
    """What version 0.1.0 wrote before records had a version: the report, the card and the comparison stay."""

    @pytest.fixture(params=RUNS)
    def folder(self, request: pytest.FixtureRequest) -> Path:
        return OLDER / str(request.param)

    def test_the_report_is_the_same(self, folder: Path) -> None:
        assert report_of(RunRecord.read(folder)) == ReportData.from_json(folder / "expected_report.json")

    def test_the_card_is_the_same(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for place in ("models/tiny-llama", "runs/sparse"):  # what a folder of that name holds is no name on the hub
            (tmp_path / place).mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        metadata, text = parts_of_card((folder / "README.md").read_text(encoding="utf-8"))
        runtimes = [line.removeprefix("- ") for line in text.splitlines() if line.startswith("- ")]
        own, own_text = parts_of_card(card_of(RunRecord.read(folder), describe(byte_model()), runtimes))
        assert own_text == text
        assert {key: own.get(key) for key in metadata} == metadata

    def test_the_comparison_is_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(OLDER)
        found = replace(compare_runs(RUNS), created="", versions={})
        assert found.to_json() == json.loads((OLDER / "expected_comparison.json").read_text())

    def test_every_key_is_still_there(self, folder: Path) -> None:
        def missing(old: Any, new: Any, path: str = "") -> list[str]:
            if isinstance(old, list):
                return [found for pair in zip(old, new, strict=True) for found in missing(*pair, path)]
            if not isinstance(old, dict):
                return [] if old == new else [path]
            return [f for key in old for f in (missing(old[key], new[key], f"{path}/{key}") if key in new else [key])]

        assert missing(json.loads((folder / "pruning.json").read_text()), encode(RunRecord.read(folder))) == []

    def test_what_is_written_again_has_a_version_and_is_read_as_the_same(self, folder: Path, tmp_path: Path) -> None:
        record = RunRecord.read(folder)
        record.write(tmp_path)
        assert json.loads((tmp_path / "pruning.json").read_text())["version"] == 1
        assert RunRecord.read(tmp_path) == record


def test_a_record_of_the_first_commits_is_read(tmp_path: Path) -> None:
    """It named no task, timed no phases, and told nothing of stability, dimensions and errors; NaN stood as it is."""
    values = json.loads((OLDER / "joint" / "pruning.json").read_text())
    pruning, metrics = values["metrics"]["pruning"], values["metrics"]
    del values["task"], values["recipe"], pruning["dimensions"], pruning["refit_errors"], metrics["phases"]
    for cut in pruning["cuts"]:
        del cut["stability"], cut["seconds"]
    metrics["history"][0]["loss"] = math.nan
    (tmp_path / "pruning.json").write_text(json.dumps(values))
    found, whole = report_of(RunRecord.read(tmp_path)), report_of(RunRecord.read(OLDER / "joint"))
    for name in ("title", "headline", "rows", "steps", "settings"):
        assert getattr(found, name) == getattr(whole, name)
    assert math.isnan(found.history[0].loss)
    assert [cut.widths for cut in found.cuts] == [cut.widths for cut in whole.cuts]


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


NUMBERS = st.floats(allow_infinity=False)
COUNTS = st.integers(0, 10**12)
OPTIONS = st.dictionaries(st.text(), st.none() | st.booleans() | COUNTS | st.text() | st.lists(COUNTS))


def of(kind: type, **known: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Instances of a dataclass, each field by its own strategy or one for its type."""
    by_type = {"int": COUNTS, "float": st.floats(0, 1), "str": st.text(), "bool": st.booleans()}
    plain = {
        field.name: optional(NUMBERS if name == "float" else by_type[name])
        if "None" in str(field.type)
        else by_type[name]
        for field in fields(kind)
        if (name := str(field.type).split(" ")[0]) in by_type
    }
    assert is_dataclass(kind)
    return st.builds(kind, **(plain | known))


MEASURES = of(ModelMeasures)
RECORDS = of(
    RunRecord,
    version=st.just(1),
    settings=st.builds(Settings, **{part: optional(OPTIONS) for part in ("pruning", "oneshot", "recovery", "lora")}),
    metrics=of(
        RunMetrics,
        dense=MEASURES,
        pruned=MEASURES,
        unrecovered=optional(MEASURES),
        calibration=optional(OPTIONS),
        pruning=optional(of(PruningCourse)),
        sparsity=optional(of(SparsityCourse)),
        phases=st.dictionaries(st.text(), st.floats(0, 1)),
    ),
    plan=st.dictionaries(st.text(), st.lists(COUNTS).map(tuple)),
    machine=of(Machine),
    recipe=OPTIONS,
)


@given(record=RECORDS)
def test_a_record_is_read_as_it_was_written(record: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("record")
    record.write(folder)
    assert same(RunRecord.read(folder), record)


def test_nan_and_infinities_are_null_in_the_file_and_what_was_not_measured_is_not_there(tmp_path: Path) -> None:
    RunRecord(metrics=RunMetrics(pruned=ModelMeasures(perplexity=math.inf))).write(tmp_path)
    assert json.loads((tmp_path / "pruning.json").read_text())["metrics"]["pruned"] == {"perplexity": None}
    pruned = RunRecord.read(tmp_path).metrics.pruned
    assert math.isnan(pruned.perplexity or 0.0)
    assert pruned.loss is None


class TestOtherFiles:
    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("{", "Expecting property name"),
            ("\xff", "can't decode"),
            ("[1]", "an object with fields"),
            ('{"settings": 3}', "settings should be an object"),
            ('{"metrics": {"pruned": {"perplexity": "low"}}}', r"metrics\.pruned\.perplexity should be a number"),
            ('{"metrics": {"pruning": {"ratio": 0.5}}}', r"metrics\.pruning\.target_ratio is missing"),
            ('{"plan": {"heads": [true]}}', r"plan\.heads\[0\] should be a whole number"),
            ('{"version": 2}', r"version 2 .* reads version 1.* Install"),
        ],
    )
    def test_a_damaged_or_foreign_file_is_named_with_what_is_wrong(self, tmp_path: Path, text: str, why: str) -> None:
        (tmp_path / "pruning.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=rf"pruning\.json is damaged or not the record of a run: .*{why}"):
            RunRecord.read(tmp_path)

    def test_a_folder_without_a_record(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"pruning\.json is damaged or not the record.*No such file"):
            RunRecord.read(tmp_path)

    def test_what_a_later_version_of_the_same_form_adds_is_left_alone(self, tmp_path: Path) -> None:
        shutil.copy(OLDER / "joint" / "pruning.json", tmp_path)
        values = json.loads((tmp_path / "pruning.json").read_text())
        (tmp_path / "pruning.json").write_text(json.dumps({**values, "unheard": 1, "version": 1}))
        assert RunRecord.read(tmp_path) == RunRecord.read(OLDER / "joint")

    def test_what_save_writes_has_no_course_of_pruning(self, tmp_path: Path) -> None:
        (tmp_path / "pruning.json").write_text('{"pruning": {"parameters": 3, "widths": {}}, "versions": {}}')
        assert RunRecord.read(tmp_path) == RunRecord()
