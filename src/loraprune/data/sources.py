"""Where data comes from: a file, a folder of files, or a data set of the Hugging Face hub."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from datasets import Dataset

from loraprune.data.demo import standard_library_text
from loraprune.data.hub import hub_or_cache, missing_hub
from loraprune.data.images import class_folders, read_image_folder
from loraprune.options.near import near_names

_SPLIT_WORDS: dict[str, frozenset[str]] = {
    "train": frozenset({"train", "training"}),
    "validation": frozenset({"validation", "valid", "val", "dev", "eval"}),
    "test": frozenset({"test", "testing"}),
}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_source(data: str, *, split: str = "train", name: str | None = None, allow_download: bool = True) -> Dataset:
    """Read the rows of ``data``.

    Nothing is ever written beside the data, and no code that comes with data is run.

    Args:
        data: a .csv, .json, .jsonl, .parquet or .txt file, a folder with such files, a folder with one sub-folder of
            images for each class (or with one such folder for each split), the name of a data set on the hub, or
            ``demo`` for the text of Python's standard library. What exists on disk wins over such names.
        split: split of a hub data set. In a folder it picks the files or the sub-folder named after it
            (``train-0.parquet``, ``stories_valid.jsonl``, ``test/``) or else those named after no split. A single file
            is taken whole.
        name: configuration of a hub data set that has several.
        allow_download: whether the hub may be asked.

    Raises:
        FileNotFoundError: there is no such file, folder or hub data set, or the hub cannot be reached.
        ValueError: what is there cannot be read, or holds no rows.
    """
    if not data.strip():
        raise ValueError("No data is named. Give a file, a folder or the name of a data set on the hub.")
    path = Path(data).expanduser()
    if path.exists():
        if name is not None:
            raise ValueError(f"name={name!r} picks a configuration of a hub data set, but {path} is on disk. Drop it.")
        if "[" in split:
            raise ValueError(f"split={split!r} takes a slice of a hub data set, but {path} is on disk. Name the whole.")
        return _load_folder(path, split) if path.is_dir() else read_file(path)
    if data == "demo":
        train, held_out = standard_library_text()
        return Dataset.from_dict({"text": train if split in _SPLIT_WORDS["train"] else held_out})
    if path.suffix.lower() in READERS or not _HUB_NAME.fullmatch(data):
        raise FileNotFoundError(f"{path} does not exist.{_near_names(path)}")
    if not allow_download:
        raise FileNotFoundError(
            f"{data!r} is no file or folder here, and downloads from the hub are off.{_near_names(path)}"
        )
    return _load_hub(data, split, name)


def hub_data_set(data: object) -> str | None:
    """The name that :func:`load_source` asks the hub for; None of data that is here."""
    here = not isinstance(data, str) or Path(data).expanduser().exists()
    return None if here or not _HUB_NAME.fullmatch(str(data)) else str(data)


def _near_names(path: Path) -> str:
    """Say what a mistyped path may have meant."""
    folder = path.parent
    if not folder.is_dir():
        return f" There is no folder {folder} either."
    entries = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() or entry.suffix.lower() in READERS]
    stems = near_names(path.stem, sorted({entry.stem for entry in entries}), 3)  # all endings look alike
    near = [str(entry) for entry in entries if entry.stem in stems] or near_names(str(path), ["demo"])
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _split_of(path: Path) -> str | None:
    """The split that a file is named after, if any."""
    words = set(re.split(r"[-_.]", path.stem.lower()))
    return next((split for split, names in _SPLIT_WORDS.items() if names & words), None)


def _load_folder(folder: Path, split: str) -> Dataset:
    files = sorted(
        entry
        for entry in folder.iterdir()
        if entry.is_file() and entry.suffix.lower() in READERS and not entry.name.startswith((".", "_"))
    )
    wanted = next((key for key, names in _SPLIT_WORDS.items() if split.lower() in names), split)
    if not files:
        return _load_images(folder, wanted)
    chosen = [file for file in files if _split_of(file) == wanted] or [
        file for file in files if _split_of(file) is None
    ]
    if not chosen:
        names = ", ".join(file.name for file in files)
        raise FileNotFoundError(
            f"The folder {folder} holds no files of the split {split!r}, only {names}. Name a file or another split."
        )
    parts = [read_file(file) for file in chosen]
    for file, part in zip(chosen, parts, strict=True):
        if set(part.column_names) != set(parts[0].column_names):
            raise ValueError(
                f"The files in {folder} do not go together: {chosen[0].name} has the columns "
                f"{', '.join(parts[0].column_names)}, {file.name} has {', '.join(part.column_names)}. Give one file."
            )
    try:
        return datasets.concatenate_datasets(parts)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"The files in {folder} hold values of different kinds in columns of the same name. Give one file."
        ) from error


def _load_images(folder: Path, split: str) -> Dataset:
    """A folder of classes, or the one of the wanted split in it."""
    entries = [entry for entry in sorted(folder.iterdir()) if entry.is_dir()]
    splits = {_split_of(entry): entry for entry in entries if _split_of(entry) and class_folders(entry)}
    if split in splits:
        return read_image_folder(splits[split])
    if splits:
        raise FileNotFoundError(
            f"The folder {folder} holds images of the splits {', '.join(sorted(map(str, splits)))}, and none of "
            f"{split!r}. Name another split."
        )
    if class_folders(folder):
        return read_image_folder(folder)
    raise FileNotFoundError(
        f"The folder {folder} holds no data files (endings: {SUPPORTED}) and no sub-folders of images."
    )


def _load_hub(data: str, split: str, name: str | None) -> Dataset:
    try:
        with hub_or_cache(data):
            dataset = datasets.load_dataset(data, name, split=split)
    except (FileNotFoundError, ConnectionError) as error:
        unreachable = isinstance(error, ConnectionError)
        said = "the hub cannot be reached" if unreachable else "the hub has no such data set"
        reason = missing_hub() or f"{said} ({_one_line(error)})"
        raise FileNotFoundError(
            f"{data!r} is no file or folder here, and {reason}. Check the path, the name, and the network."
            f"{_near_names(Path(data))}"
        ) from error
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"The hub data set {data!r} cannot be loaded: {_one_line(error)}") from error
    if dataset.num_rows == 0:
        raise ValueError(f"The split {split!r} of the hub data set {data!r} holds no rows. Choose another split.")
    return dataset


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# Readers of one data file each: JSON Lines, JSON, CSV, Parquet and plain text.
#
# The ``datasets`` loaders are not used for files: their errors do not name the broken line, they turn strings that
# look like dates into dates, and they keep a copy of the data in a cache. A file is read into memory instead.

DOCUMENT_SEPARATOR = "<|endoftext|>"
"""A line that holds only this ends a document of a plain text file."""

_Row = dict[str, Any]


def _rows_dataset(rows: list[_Row], path: Path) -> Dataset:
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


def _parse_line(line: str, number: int, path: Path) -> _Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {number} is not valid JSON: {error.msg} at column {error.colno}. "
            "Every line must hold one complete JSON object."
        ) from error
    except RecursionError:
        raise ValueError(f"{path}, line {number} is nested too deeply. Write plain rows.") from None
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
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply. Write plain rows.") from None
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
    rows: list[_Row] = []
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
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file, and data is read more than once. Write it into a file.")
    try:
        dataset = reader(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}). Convert it to UTF-8.") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error
    if dataset.num_rows == 0:
        raise ValueError(f"{path} is empty: it holds no rows. Give a file with at least one.")
    return dataset
