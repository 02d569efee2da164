from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDatasetDict, Value

from loraprune.data.mixture import RawRows, Reading, read_data
from loraprune.data.streams import RowStream


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", [{"text": f"a{i}", "id": i} for i in range(60)])
    write(tmp_path / "b.jsonl", [{"text": f"b{i}", "id": f"x{i}"} for i in range(20)])
    write(tmp_path / "pairs.jsonl", [{"prompt": "p", "completion": "c"}])
    return tmp_path


def texts(raw: RawRows) -> list[str]:
    return [row["text"] for row in raw.rows]


both = pytest.mark.parametrize("streaming", [False, True])


@both
def test_without_weights_all_rows_follow_each_other(streaming: bool) -> None:
    raw = read_data(["a.jsonl", "b.jsonl"], Reading(streaming=streaming))
    assert texts(raw) == [f"a{i}" for i in range(60)] + [f"b{i}" for i in range(20)]
    assert [fact["used"] for fact in raw.facts()] == [60, 20]


@both
def test_a_mixture_keeps_its_shares_and_the_order_of_each_source_until_one_runs_out(streaming: bool) -> None:
    raw = read_data(["a.jsonl:1", "b.jsonl:3"], Reading(streaming=streaming, seed=5))
    found = texts(raw)
    assert len(set(found)) == len(found)
    assert [text for text in found if text[0] == "b"] == [f"b{i}" for i in range(20)]
    assert [text for text in found if text[0] == "a"] == [f"a{i}" for i in range(len(found) - 20)]
    assert 2 <= len(found) - 20 <= 14
    assert [fact["used"] for fact in raw.facts()] == [len(found) - 20, 20]
    assert [fact["weight"] for fact in raw.facts()] == [1.0, 3.0]


def test_a_seed_decides_the_order_and_streams_have_the_same() -> None:
    names = ["a.jsonl:0.5", "b.jsonl:0.5"]
    first = texts(read_data(names, Reading(seed=1)))
    assert texts(read_data(names, Reading(seed=1))) == first
    assert texts(read_data(names, Reading(seed=1, streaming=True))) == first
    assert texts(read_data(names, Reading(seed=2))) != first


@both
def test_all_exhausted_repeats_rows_until_each_source_was_used_up(streaming: bool) -> None:
    reading = Reading(stopping_strategy="all_exhausted", streaming=streaming)
    found = Counter(texts(read_data(["a.jsonl:1", "b.jsonl:1"], reading)))
    assert set(found) == {f"a{i}" for i in range(60)} | {f"b{i}" for i in range(20)}
    assert max(count for text, count in found.items() if text[0] == "b") > 1
    assert all(count == 1 for text, count in found.items() if text[0] == "a")


@both
def test_sources_of_different_formats_do_not_go_together(streaming: bool) -> None:
    with pytest.raises(ValueError, match=r"a\.jsonl has the columns text, id, pairs\.jsonl has prompt, completion"):
        read_data(["a.jsonl", "pairs.jsonl"], Reading(streaming=streaming))


def test_columns_that_no_format_reads_are_left_out_unless_they_are_alike(caplog: pytest.LogCaptureFixture) -> None:
    raw = read_data(["a.jsonl", "b.jsonl"], Reading())
    assert raw.rows.column_names == ["text"]
    assert "dropped columns that not all sources have with the same type: id" in caplog.text


def test_conversations_with_other_keys_go_together(folder: Path) -> None:
    plain = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    marked = [plain[0], {**plain[1], "weight": 0}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "x"}]}, plain[1]]
    write(folder / "plain.jsonl", [{"messages": plain}])
    write(folder / "marked.jsonl", [{"messages": marked, "system": "s"}])
    write(folder / "parts.jsonl", [{"messages": parts}])
    rows = read_data(["plain.jsonl", "marked.jsonl", "parts.jsonl"], Reading()).rows
    assert [row["messages"] for row in rows] == [plain, marked, parts]
    assert [row["system"] for row in rows] == [None, "s", None]


@both
def test_columns_are_renamed_in_the_sources_that_have_them(folder: Path, streaming: bool) -> None:
    write(folder / "c.jsonl", [{"body": "c0", "text": "old"}])
    raw = read_data(["c.jsonl", "b.jsonl"], Reading(columns="text=body", streaming=streaming))
    assert texts(raw)[:2] == ["c0", "b0"]


def test_columns_may_change_places(folder: Path) -> None:
    raw = read_data("pairs.jsonl", Reading(columns="prompt=completion,completion=prompt"))
    assert list(raw.rows) == [{"prompt": "c", "completion": "p"}]


@both
def test_a_column_that_no_source_has_is_refused(streaming: bool) -> None:
    with pytest.raises(ValueError, match=r"a\.jsonl has no column 'body' .*Its columns are text, id"):
        read_data("a.jsonl", Reading(columns="text=body", streaming=streaming))


def test_held_out_data_may_have_the_new_names_already() -> None:
    assert texts(read_data("b.jsonl", Reading(columns="text=body", may_be_renamed=True)))[0] == "b0"


@pytest.mark.parametrize("columns", ["text", "text=", "=a", "text=a=b", "text=a,text=b", "text=a,prompt=a", "a=b,"])
def test_wrong_pairs_of_columns_are_refused(columns: str) -> None:
    with pytest.raises(ValueError, match="Write prompt=question"):
        read_data("a.jsonl", Reading(columns=columns))


def test_a_dictionary_of_splits_gives_the_split_that_is_asked_for() -> None:
    splits = DatasetDict(train=Dataset.from_dict({"text": ["t"]}), validation=Dataset.from_dict({"text": ["v"]}))
    assert texts(read_data(splits, Reading(split="val"))) == ["v"]
    with pytest.raises(FileNotFoundError, match="has the splits train, validation, but none called 'test'"):
        read_data(splits, Reading(split="test"))


def test_a_stream_is_read_no_further_than_it_is_asked_for(folder: Path) -> None:
    with (folder / "a.jsonl").open("a") as file:
        file.write('{"text": "more"}\n' * 2000 + "no json\n")
    raw = read_data("a.jsonl", Reading(streaming=True))
    assert isinstance(raw.rows, RowStream)
    assert raw.rows.first(3)["text"][:] == ["a0", "a1", "a2"]


def test_a_stream_refuses_a_column_that_its_first_rows_do_not_have(folder: Path) -> None:
    write(folder / "late.jsonl", [{"text": "x"}] * 1000 + [{"text": "x", "system": "s"}])
    with pytest.raises(ValueError, match=r"Row 1001 of late\.jsonl has a column 'system'"):
        list(read_data("late.jsonl", Reading(streaming=True)).rows)


def test_streams_of_datasets_are_read_as_streams() -> None:
    rows = Dataset.from_dict({"text": ["x", "y"]}).to_iterable_dataset()
    raw = read_data(rows, Reading())
    assert isinstance(raw.rows, RowStream)
    assert texts(raw) == ["x", "y"]


def labeled(names: list[str]) -> Dataset:
    features = Features(text=Value("string"), label=ClassLabel(names=names))
    return Dataset.from_dict({"text": ["x", "y"], "label": [0, 1]}, features=features)


def test_a_stream_keeps_the_names_of_classes() -> None:
    stream = read_data(labeled(["cat", "dog"]).to_iterable_dataset(), Reading(streaming=True)).rows
    assert isinstance(stream, RowStream)
    assert stream.first(2).features["label"].names == ["cat", "dog"]


def test_streams_with_other_classes_are_not_mixed() -> None:
    data = [labeled(names).to_iterable_dataset() for names in (["cat", "dog"], ["dog", "cat"])]
    with pytest.raises(ValueError, match="labels have different classes"):
        read_data(data, Reading(streaming=True))


def test_splits_that_are_streams_are_read_as_one() -> None:
    splits = IterableDatasetDict({"train": Dataset.from_dict({"text": ["x", "y"]}).to_iterable_dataset()})
    assert texts(read_data(splits, Reading())) == ["x", "y"]
