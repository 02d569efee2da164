from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset

from loraprune.data.named import DataSource, data_ending, data_places, find_sources


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl", "c.csv.gz", "12:30.txt", "notes.md", "odd:0.5"):
        Path(name).write_text("x")
    Path("clone").mkdir()
    return tmp_path


@pytest.mark.usefixtures("folder")
class TestNames:
    @pytest.mark.parametrize(
        ("given", "name", "config", "weight", "paths"),
        [
            ("a.jsonl", "a.jsonl", None, None, ["a.jsonl"]),
            ("a.jsonl:0.7", "a.jsonl", None, 0.7, ["a.jsonl"]),
            ("a.jsonl:2", "a.jsonl", None, 2.0, ["a.jsonl"]),
            ("12:30.txt", "12:30.txt", None, None, ["12:30.txt"]),
            ("12:30.txt:3", "12:30.txt", None, 3.0, ["12:30.txt"]),
            ("odd:0.5", "odd:0.5", None, None, ["odd:0.5"]),
            ("*.jsonl", "*.jsonl", None, None, ["a.jsonl", "b.jsonl"]),
            ("*.jsonl:4", "*.jsonl", None, 4.0, ["a.jsonl", "b.jsonl"]),
            ("*", "*", None, None, ["12:30.txt", "a.jsonl", "b.jsonl", "c.csv.gz"]),
            ("org/name", "org/name", None, None, []),
            ("org/name:main", "org/name:main", "main", None, []),
            ("org/name:main:0.5", "org/name:main", "main", 0.5, []),
            ("org/name:0.5", "org/name", None, 0.5, []),
            ("clone:main", "clone:main", "main", None, ["clone"]),
        ],
    )
    def test_a_name_is_a_place_a_configuration_and_a_weight(
        self, given: str, name: str, config: str | None, weight: float | None, paths: list[str]
    ) -> None:
        expected = DataSource(name=name, config=config, weight=weight, paths=tuple(map(Path, paths)))
        assert find_sources(given) == (expected,)

    def test_what_was_found_is_taken_as_it_is(self) -> None:
        found = find_sources(["a.jsonl:1", "b.jsonl:2"])
        assert find_sources(found) == found

    def test_data_sets_are_taken_as_they_are(self) -> None:
        rows = Dataset.from_dict({"text": ["x"]})
        (source,) = find_sources(rows)
        assert source.loaded is rows
        assert not data_places(rows)

    def test_places_are_those_of_all_files(self) -> None:
        assert data_places(["*.jsonl", "org/name"]) == (Path("a.jsonl"), Path("b.jsonl"))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ([], "No data is named"),
            (5, "The data is 5"),
            ("a.jsonl:x", "weight of a.jsonl is 'x'"),
            ("*.jsonl:x", r"weight of \*.jsonl is 'x'"),
            ("a.jsonl:0", "weight of a.jsonl is 0; it must be a number above 0"),
            ("org/name:-1", "weight of org/name is -1"),
            ("a.jsonl:inf", "weight of a.jsonl is inf"),
            (["a.jsonl:1", "b.jsonl"], "b.jsonl has no weight"),
            (["a.jsonl", "./a.jsonl"], r"a.jsonl is named twice \(by a.jsonl and by ./a.jsonl\)"),
            (["*.jsonl", "b.jsonl"], r"b.jsonl is named twice \(by \*.jsonl and by b.jsonl\)"),
            (["org/name", "org/name"], "org/name is named twice. Name it once"),
            ([".", "a.jsonl"], "a.jsonl lies in ., which is also named"),
        ],
    )
    def test_wrong_names_and_weights_are_refused(self, given: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            find_sources(given)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("*.parquet", r"No data file matches \*.parquet"),
            ("*.md", r"matches notes.md, which is not a data file: endings are .csv"),
            ("gone.jsonl:0.5", "gone.jsonl does not exist"),
            ("gone.jsonl:main", "gone.jsonl:main does not exist"),
            ("a/b/c:main", "a/b/c:main does not exist"),
        ],
    )
    def test_what_is_missing_is_named(self, given: str, message: str) -> None:
        with pytest.raises(FileNotFoundError, match=message):
            find_sources(given)


@pytest.mark.parametrize(
    ("name", "ending"),
    [("a.JSONL", ".jsonl"), ("a.ndjson.gz", ".ndjson"), ("a.b.tsv.zst", ".tsv"), ("a.gz", None), ("a.arrow", None)],
)
def test_the_ending_before_that_of_a_compressed_file_counts(name: str, ending: str | None) -> None:
    assert data_ending(Path(name)) == ending
