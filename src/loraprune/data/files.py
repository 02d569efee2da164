"""Readers of data files: JSON Lines, JSON, CSV, Parquet and plain text, plain or compressed.

The ``datasets`` loaders are not used for files: their errors do not name the broken line, they convert strings that
look like dates, and they copy the data into a cache.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from datasets import Dataset, Features, Json

from loraprune.data.named import SUPPORTED, data_ending

DOCUMENT_SEPARATOR = "<|endoftext|>"
"""Line that separates the documents of a plain text file."""

_Row = dict[str, Any]


def read_file(path: Path) -> Dataset:
    """Read one data file in the format of its ending.

    Raises:
        ValueError: the ending is unknown, the file is broken (the message names the line), or it holds no rows.
    """
    if data_ending(path) == ".parquet" and path.is_file():
        with _telling(path):
            dataset = Dataset(pq.read_table(path, partitioning=None))
    else:
        dataset = _rows_dataset(list(file_rows(path)), path)
    if dataset.num_rows == 0:
        raise ValueError(f"{path} is empty: it holds no rows. Give a file with at least one.")
    return dataset


def file_rows(path: Path) -> Iterator[_Row]:
    """Yield the rows of one data file.

    Raises:
        ValueError: the ending is unknown, or the file is broken (the message names the line).
    """
    ending = data_ending(path)
    if ending is None:
        raise ValueError(f"{path} cannot be read: its ending is not one of {SUPPORTED}. Convert it to one of these.")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file, but data is read more than once. Write the data to a file.")
    with _telling(path):
        yield from _READERS[ending](path)


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Turn errors of reading into one-line messages."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text. Convert it to UTF-8.") from error
    except pa.ArrowException as error:
        raise ValueError(f"{path} cannot be read as a Parquet file: {_first_line(error)}") from error
    except _decompression_errors() as error:
        raise ValueError(f"{path} cannot be decompressed: {_first_line(error)}. Fetch it again.") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error


def _decompression_errors() -> tuple[type[BaseException], ...]:
    zstandard = sys.modules.get("zstandard")
    return (EOFError, zlib.error, *([zstandard.ZstdError] if zstandard else []))


def _rows_dataset(rows: list[_Row], path: Path) -> Dataset:
    """Make a dataset with the columns of all rows; a key that a row lacks becomes None."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    values = {column: [row.get(column) for row in rows] for column in columns}
    try:
        return table_of(values)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds a value that cannot be stored in a table: {_first_line(error)}") from error


def table_of(columns: Mapping[str, list[Any]]) -> Dataset:
    """Make a dataset from columns that may mix types. The code that uses a column checks its values."""
    found = Dataset.from_dict(dict(columns), on_mixed_types="use_json")
    mixed = [name for name, kind in found.features.items() if "Json(" in str(kind)]
    if not mixed:
        return found
    # By default, a JSON column parses text that looks like JSON: "4" becomes the number.
    features = Features({**found.features, **dict.fromkeys(mixed, Json())})
    return Dataset.from_dict({**columns, **{name: as_json(columns[name]) for name in mixed}}, features=features)


def as_json(values: Iterable[Any]) -> list[Any]:
    """Encode values for a JSON column so that text stays text."""
    return [json.dumps(value) if isinstance(value, str) else value for value in values]


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def _opened(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """Open a file as text, decompressed according to its ending."""
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".zst": _zstandard}
    opener = openers.get(path.suffix.lower(), open)
    with opener(path, "rb") as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline=newline) as text:
        yield text


def _zstandard(path: Path, mode: str) -> Any:
    """Open a Zstandard file: one frame or several, with windows of any size."""
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path} is compressed with Zstandard, and the package that reads it is not installed: "
            'pip install "loraprune[zstd]".'
        ) from error
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    return decompressor.stream_reader(path.open(mode), read_across_frames=True, closefd=True)


def _parse_line(line: str, number: int, path: Path) -> _Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {number} is not valid JSON: {error.msg} at column {error.colno}. "
            "Every line must hold one complete JSON object."
        ) from error
    except RecursionError:
        raise ValueError(f"{path}, line {number} is nested too deeply. Flatten the row.") from None
    if not isinstance(row, dict):
        raise ValueError(
            f"{path}, line {number} holds a JSON {type(row).__name__}, not an object with named fields. "
            "A file that is one JSON list must end in .json."
        )
    return row


def _json_lines(path: Path) -> Iterator[_Row]:
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parse_line(line, number, path)


def _json(path: Path) -> Iterator[_Row]:
    """Read a list of objects, an object with such a list under ``data``, or JSON Lines in a .json file."""
    with _opened(path) as file:
        text = file.read()
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):  # several objects: JSON Lines
            yield from _json_lines(path)
            return
        raise ValueError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from error
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply. Flatten the rows.") from None
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
        yield row


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lift the 128 kB limit on one CSV field, which is a global of the csv module."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _csv(path: Path) -> Iterator[_Row]:
    """Read a table with a header line and commas, semicolons or tabs between fields. All values are text."""
    with _opened(path, newline="") as file:
        separator = "\t" if data_ending(path) == ".tsv" else _separator(file.readline())
    with _opened(path, newline="") as file:
        reader = csv.DictReader(file, strict=True, delimiter=separator)
        while True:
            try:
                with _long_fields():
                    row = next(reader, None)
            except csv.Error as error:
                start = reader.line_num + 1  # the line after the last complete row
                raise ValueError(f"{path}: the row that begins on line {start} is not valid CSV: {error}.") from error
            if row is None:
                return
            if None in row:
                raise ValueError(
                    f"{path}, line {reader.line_num} has more fields than the header names "
                    f"({', '.join(reader.fieldnames or ())}). Put a field that holds {_NAMES[separator]} in double "
                    "quotes."
                )
            yield row


_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs"}


def _separator(header: str) -> str:
    """Find the separator of a header: a comma if there is one, else the sign that splits it most."""
    parts = {sign: len(next(csv.reader([header], delimiter=sign), [])) for sign in _NAMES}
    return "," if parts[","] > 1 else max(_NAMES, key=parts.__getitem__)


def _parquet(path: Path) -> Iterator[_Row]:
    for batch in pq.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def _text(path: Path) -> Iterator[_Row]:
    """Read documents separated by ``<|endoftext|>`` lines or, if there are none, by blank lines."""
    with _opened(path) as lines:
        separator = DOCUMENT_SEPARATOR if any(line.strip() == DOCUMENT_SEPARATOR for line in lines) else ""
    with _opened(path) as lines:
        for ends, document in groupby(lines, key=lambda line: line.strip() == separator):
            text = "".join(document).strip("\n")
            if not ends and text.strip():
                yield {"text": text}


_READERS: dict[str, Callable[[Path], Iterator[_Row]]] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
    ".tsv": _csv,
    ".txt": _text,
}
"""The reader of each file ending."""
