"""Readers of one data file each: JSON Lines, JSON, CSV, Parquet and plain text.

The ``datasets`` loaders are not used for files: their errors do not name the broken line, they turn strings that
look like dates into dates, and they keep a copy of the data in a cache. A file is read into memory instead.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from datasets import Dataset

DOCUMENT_SEPARATOR = "<|endoftext|>"
"""A line that holds only this ends a document of a plain text file."""

Row = dict[str, Any]


def _rows_dataset(rows: list[Row], path: Path) -> Dataset:
    """Turn rows into a data set with the columns of all rows; a key that a row lacks is None there."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    values = {column: [row.get(column) for row in rows] for column in columns}
    try:
        # Values of several kinds in one column are kept as they are: whoever uses the column says what is wrong.
        return Dataset.from_dict(values, on_mixed_types="use_json")
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds a value that cannot be stored in a table: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _parse_line(line: str, number: int, path: Path) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {number} is not valid JSON: {error.msg} at column {error.colno}. "
            "Every line must hold one complete JSON object."
        ) from error
    if not isinstance(row, dict):
        raise ValueError(
            f"{path}, line {number} holds a JSON {type(row).__name__}, not an object with named fields. "
            "A file that is one JSON list must end in .json."
        )
    return row


def _read_jsonl(path: Path) -> Dataset:
    with path.open(encoding="utf-8-sig") as lines:
        rows = [_parse_line(line, number, path) for number, line in enumerate(lines, start=1) if line.strip()]
    return _rows_dataset(rows, path)


def _read_json(path: Path) -> Dataset:
    """Read a list of objects, an object that holds it under ``data``, or JSON Lines in a file called .json."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):  # one object, and then more: JSON Lines
            return _read_jsonl(path)
        raise ValueError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from error
    rows = content["data"] if isinstance(content, dict) and isinstance(content.get("data"), list) else content
    if not isinstance(rows, list):
        raise ValueError(
            f"{path} holds a JSON {type(rows).__name__}, not rows. "
            'Write it as a list of objects, [{…}, …], or as {"data": [{…}, …]}.'
        )
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}: entry {number} of the list is a {type(row).__name__}, not an object with named fields."
            )
    return _rows_dataset(rows, path)


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lift the 128 kB limit on one CSV field, which is a global of the csv module."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _read_csv(path: Path) -> Dataset:
    """Read a CSV file with a header line; all its values are text."""
    rows: list[Row] = []
    with path.open(encoding="utf-8-sig", newline="") as file, _long_fields():
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row:
                    raise ValueError(
                        f"{path}, line {reader.line_num} has more fields than the header names "
                        f"({', '.join(reader.fieldnames or ())}). Put a field that holds commas in double quotes."
                    )
                rows.append(row)
        except csv.Error as error:
            start = reader.line_num + 1  # behind the last row that was read whole
            raise ValueError(f"{path}: the row that begins on line {start} is not valid CSV: {error}.") from error
    return _rows_dataset(rows, path)


def _read_parquet(path: Path) -> Dataset:
    try:
        return Dataset(pq.read_table(path, partitioning=None))
    except (pa.ArrowException, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a Parquet file: {_first_line(error)}") from error


def _read_text(path: Path) -> Dataset:
    """Read documents apart from each other by ``<|endoftext|>`` lines or, where there is none, by blank lines."""
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    marked = any(line.strip() == DOCUMENT_SEPARATOR for line in lines)
    documents: list[list[str]] = [[]]
    for line in lines:
        if line.strip() == (DOCUMENT_SEPARATOR if marked else ""):
            documents.append([])
        else:
            documents[-1].append(line)
    texts = ["\n".join(document).strip("\n") for document in documents]
    return Dataset.from_dict({"text": [text for text in texts if text.strip()]})


READERS: dict[str, Callable[[Path], Dataset]] = {
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}
"""The reader of each file ending."""

SUPPORTED = ", ".join(READERS)


def read_file(path: Path) -> Dataset:
    """Read one data file; its ending says how.

    Raises:
        ValueError: the ending is unknown, the file is broken (the message names the line), or it holds no rows.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} cannot be read: its ending is none of {SUPPORTED}. Convert it to one of these.")
    try:
        dataset = reader(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}). Convert it to UTF-8.") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error
    if dataset.num_rows == 0:
        raise ValueError(f"{path} is empty: it holds no rows. Give a file with at least one.")
    return dataset
