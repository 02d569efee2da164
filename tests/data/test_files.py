from __future__ import annotations

import csv
import gzip
import json
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from loraprune.data.files import read_file


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.jsonl", '{"text": "one"}\n\n{"text": "two\\nlines"}\n'),
        ("rows.json", '[{"text": "one"}, {"text": "two\\nlines"}]'),
        ("wrapped.json", '{"version": 1, "data": [{"text": "one"}, {"text": "two\\nlines"}]}'),
        ("lines.json", '{"text": "one"}\n{"text": "two\\nlines"}\n'),
        ("rows.csv", 'text\none\n"two\nlines"\n'),
        ("windows.CSV", '\ufefftext\r\none\r\n"two\nlines"\r\n'),
        ("rows.txt", "one\n\n\ntwo\nlines\n"),
        ("marked.txt", "one\n<|endoftext|>\ntwo\nlines\n"),
    ],
)
def test_every_ending_gives_the_same_rows(tmp_path: Path, name: str, text: str) -> None:
    assert read_file(write(tmp_path / name, text))["text"][:] == ["one", "two\nlines"]


def test_parquet_is_read(tmp_path: Path) -> None:
    Dataset.from_dict({"prompt": ["a", "b"], "completion": ["c", None]}).to_parquet(tmp_path / "rows.parquet")
    assert read_file(tmp_path / "rows.parquet").to_list() == [
        {"prompt": "a", "completion": "c"},
        {"prompt": "b", "completion": None},
    ]


def test_blank_lines_stay_in_documents_that_are_marked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\n\nstill one\n<|endoftext|>\ntwo\n<|endoftext|>\n")
    assert read_file(path)["text"][:] == ["one\n\nstill one", "two"]


def test_lines_of_spaces_are_blank_and_indentation_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "def f():\n    pass\n \n  two\n")
    assert read_file(path)["text"][:] == ["def f():\n    pass", "  two"]


def test_a_key_that_some_rows_lack_is_none_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one"}\n{"text": "two", "source": "x"}\n')
    assert read_file(path)["source"][:] == [None, "x"]


def test_values_of_several_kinds_in_one_column_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one", "id": 1}\n{"text": "two", "id": "b"}\n')
    assert read_file(path)["id"][:] == [1, "b"]


def test_text_that_reads_like_json_stays_text_beside_values_of_other_kinds(tmp_path: Path) -> None:
    rows = [{"a": "4", "b": [{"c": "true"}]}, {"a": [4], "b": [{"c": [True]}]}, {"a": "x", "b": [{"c": "{}"}]}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert read_file(path).to_list() == rows


def test_text_that_looks_like_a_date_or_a_number_stays_text(tmp_path: Path) -> None:
    assert read_file(write(tmp_path / "a.jsonl", '{"output": "2020-01-01"}\n'))["output"][:] == ["2020-01-01"]
    assert read_file(write(tmp_path / "a.csv", "output\n007\n"))["output"][:] == ["007"]


def test_long_csv_fields_are_read_and_the_limit_is_restored(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    long = "x" * (limit + 1)
    assert read_file(write(tmp_path / "a.csv", f"text\n{long}\n"))["text"][:] == [long]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"text": "one"}\n{"text": "two"\n', r"a\.jsonl, line 2 is not valid JSON: .* at column"),
        ("a.jsonl", '{"text": "one"}\n\n"two"\n', r"a\.jsonl, line 3 holds a JSON str, not an object"),
        ("a.jsonl", '[{"text": "one"}]', r"line 1 holds a JSON list.* must end in \.json"),
        ("a.json", '[{"text": "one"},\n{"text" "two"}]', r"a\.json is not valid JSON: .* at line 2, column 9"),
        ("a.json", '{"text": "one"}\n{"text": \n', r"a\.json, line 2 is not valid JSON"),
        ("a.json", '[{"text": "one"}] and more', r"a\.json is not valid JSON: Extra data at line 1, column 19"),
        ("a.json", '{"rows": []}', r"a\.json holds a JSON dict, not rows\. Write it as a list"),
        ("a.json", '[{"text": "one"}, 2]', r"entry 2 of the list is a int"),
        ("a.csv", "prompt,completion\na,b\na,b,c\n", r"a\.csv, line 3 has more fields .*\(prompt, completion\)"),
        ("a.csv", 'text\n"never\nclosed\n', r"a\.csv: the row that begins on line 2 is not valid CSV"),
        ("a.parquet", "not parquet", r"a\.parquet cannot be read as a Parquet file: .*magic bytes"),
        (
            "a.docx",
            "x",
            r"a\.docx cannot be read: its ending is not one of \.csv, .* \.txt; or one of these and \.gz or \.zst",
        ),
        ("a", "x", r"its ending is not one of"),
        ("a.jsonl", '{"text": "\\ud800"}\n', r"a\.jsonl holds a value that cannot be stored in a table"),
        ("a.jsonl", json.dumps({"id": 2**80}), r"a\.jsonl holds a value that cannot be stored in a table"),
    ],
)
def test_broken_files_are_refused_with_the_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_file(write(tmp_path / name, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.jsonl", ""), ("a.jsonl", "\n\n"), ("a.json", "[]"), ("a.csv", ""), ("a.csv", "text\n"), ("a.txt", " \n\n")],
)
def test_files_without_rows_are_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(ValueError, match="is empty: it holds no rows"):
        read_file(write(tmp_path / name, text))


def test_an_empty_json_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON: Expecting value at line 1"):
        read_file(write(tmp_path / "a.json", ""))


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    Dataset.from_dict({"text": []}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="is empty: it holds no rows"):
        read_file(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_text_in_another_encoding_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"text": "caf\xe9"}')
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_file(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.ndjson", '{"a": "1", "b": "x, y"}\n'),
        ("rows.tsv", "a\tb\n1\tx, y\n"),
        ("rows.csv", "a;b\n1;x, y\n"),
        ("tabs.csv", "a\tb\n1\tx, y\n"),
        ("commas.csv", 'a,b\n1,"x, y"\n'),
        ("mixed.csv", '"a";b\n1;"x, y"\n'),
    ],
)
def test_separators_follow_from_ending_and_header(tmp_path: Path, name: str, text: str) -> None:
    assert read_file(write(tmp_path / name, text)).to_list() == [{"a": "1", "b": "x, y"}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.txt"])
@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_files_are_read_like_plain_ones(tmp_path: Path, name: str, ending: str) -> None:
    texts = {".txt": "caf\u00e9\n", ".csv": "text\ncaf\u00e9\n"}
    plain = write(tmp_path / name, texts.get(Path(name).suffix, '{"text": "caf\u00e9"}\n{"text": "tea"}\n'))
    compress = gzip.compress if ending == ".gz" else pytest.importorskip("zstandard").compress
    content = plain.read_bytes()
    (tmp_path / f"{name}{ending}").write_bytes(compress(content[:8]) + compress(content[8:]))  # of two frames
    assert read_file(tmp_path / f"{name}{ending}").to_list() == read_file(plain).to_list()


@pytest.mark.parametrize(
    "content", [b"no gzip", gzip.compress(b'{"text": "x"}\n' * 9, mtime=0)[:-10]], ids=["no gzip", "its end is missing"]
)
def test_broken_compressed_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz cannot be (read: Not a gzipped file|decompressed: .* Fetch)"):
        read_file(tmp_path / "a.jsonl.gz")


def test_a_broken_zstandard_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    (tmp_path / "a.jsonl.zst").write_bytes(b"no zstandard")
    with pytest.raises(ValueError, match=r"a\.jsonl\.zst cannot be decompressed: .*\. Fetch it again"):
        read_file(tmp_path / "a.jsonl.zst")


def test_zstandard_files_name_the_package_that_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.jsonl.zst").write_bytes(b"x")
    with pytest.raises(ValueError, match=r'pip install "loraprune\[zstd\]"'):
        read_file(tmp_path / "a.jsonl.zst")
