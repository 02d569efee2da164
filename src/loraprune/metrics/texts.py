"""Texts for perplexity: the usual datasets, prepared as in the papers, and files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from loraprune.data.demo import standard_library_text
from loraprune.data.hub import hub_or_cache, missing_hub
from loraprune.options.near import did_you_mean

JSON_LINES = (".jsonl", ".ndjson")
BETWEEN_DOCUMENTS = "\n\n"


@dataclass(frozen=True, kw_only=True)
class TextSet:
    """How a Hub dataset becomes one text.

    Attributes:
        arguments: arguments of ``datasets.load_dataset``.
        column: column of the rows' text.
        joint: text between rows.
        row_of_line: converts a line of a local copy to a row.
        max_rows: maximum number of rows, from the first on; None takes all.
        max_segments: maximum number of segments to measure; None measures all.
    """

    arguments: Mapping[str, Any]
    column: str
    joint: str
    row_of_line: Callable[[str], str]
    max_rows: int | None = None
    max_segments: int | None = None


def _wikitext_row(line: str) -> str:
    # Like the rows on the Hub: an empty line is empty, every other one keeps its newline.
    return line if line.strip() else ""


TEXT_SETS: dict[str, TextSet] = {
    # As in SparseGPT, Wanda, LLM-Pruner and LoRAPrune.
    "wikitext2": TextSet(
        arguments={"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1", "split": "test"},
        column="text",
        joint="\n\n",
        row_of_line=_wikitext_row,
    ),
    # As in LLM-Pruner and LoRAPrune. The dataset itself is a script, which current versions of `datasets` do not run.
    "ptb": TextSet(
        arguments={
            "path": "ptb-text-only/ptb_text_only",
            "revision": "refs/convert/parquet",
            "data_files": {"validation": "penn_treebank/validation/*.parquet"},
            "split": "validation",
        },
        column="sentence",
        joint="\n\n",
        row_of_line=str.strip,
    ),
    # As in SparseGPT and Wanda.
    "c4": TextSet(
        arguments={
            "path": "allenai/c4",
            "data_files": {"validation": "en/c4-validation.00000-of-00008.json.gz"},
            "split": "validation",
        },
        column="text",
        joint=" ",
        row_of_line=str.strip,
        max_rows=1100,
        max_segments=256,
    ),
}
"""Datasets by name."""

DEMO_TEXT = "demo"
"""Name of the demo's held-out text."""
DEMO_SEGMENTS = 64
"""Segments of it that are measured: under a minute on a CPU."""


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Source of a text that is not read yet.

    Attributes:
        name: name of its figures.
        file: local file; None for a Hub dataset and the demo's text.
        put_together: convention of a dataset; None uses a file unchanged.
    """

    name: str
    file: Path | None = None
    put_together: TextSet | None = None


@dataclass(frozen=True, kw_only=True)
class Text:
    """One text.

    Attributes:
        name: name of its figures.
        text: the whole text.
        source: name of the dataset or the file.
        max_segments: maximum number of segments to measure, by the dataset's convention; None measures all.
    """

    name: str
    text: str = field(repr=False)
    source: str
    max_segments: int | None = None

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Source, size and hash, for the record."""
        content = self.text.encode("utf-8")
        return {"source": self.source, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def find_texts(names: Sequence[str]) -> tuple[TextSource, ...]:
    """Resolve the names given to ``--ppl``: :data:`TEXT_SETS`, files, and files with a name (``NAME=FILE``).

    A file with the name of a dataset is a local copy of it and is prepared in the same way. A dataset takes precedence
    over a file of its name in the current folder, so figures under its name are always from the dataset. ``demo`` is
    the text that the demo holds out, unless a file or folder has that name.

    Raises:
        ValueError: a dataset or a file does not exist, or two texts have the same name.
    """
    found = tuple(_find(name) for name in names)
    for position, source in enumerate(found):
        if any(source.name == other.name for other in found[:position]):
            raise ValueError(f"Two texts have the name {source.name!r}. Give one of them another name: NAME=FILE.")
    return found


def _find(argument: str) -> TextSource:
    if argument in TEXT_SETS:
        return TextSource(name=argument, put_together=TEXT_SETS[argument])
    if argument == DEMO_TEXT and not Path(argument).exists():
        return TextSource(name=argument)
    if Path(argument).expanduser().is_file():
        path = Path(argument).expanduser()
        return TextSource(name=path.name, file=path)
    name, equals, place = argument.partition("=")
    if equals and name:
        path = Path(place).expanduser()
        if path.is_file():
            return TextSource(name=name, file=path, put_together=TEXT_SETS.get(name))
        raise ValueError(f"The text {name!r} needs the file {place}, which does not exist.")
    if Path(argument).expanduser().is_dir():
        raise ValueError(f"{argument} is a folder, not a text. If it is a model, name it before the options.")
    sets = ", ".join(TEXT_SETS)
    hint = did_you_mean(argument, TEXT_SETS)
    raise ValueError(
        f"There is no text {argument!r}: it is neither a file nor one of the datasets {sets}.{hint} Name a local copy "
        "of a dataset as wikitext2=FILE."
    )


def read_text(source: TextSource) -> Text:
    """Read and prepare a text.

    Raises:
        ValueError: it cannot be read, is empty, or the Hub cannot be reached.
    """
    form = source.put_together
    limit = None if form is None else form.max_segments
    if source.file is None and form is None:
        text, origin = BETWEEN_DOCUMENTS.join(standard_library_text()[1]), "held-out modules of Python's library"
        limit = DEMO_SEGMENTS
    elif source.file is None:
        assert form is not None
        text, origin = form.joint.join(_hub_rows(source.name, form)), _hub_name(form)
    else:
        text, origin = _file_text(source.file, form), source.file.name
    if not text.strip():
        raise ValueError(f"The text {source.name!r} ({origin}) is empty.")
    # JSON can hold lone surrogates, which are not valid text.
    text = text.encode("utf-8", errors="replace").decode("utf-8")
    return Text(name=source.name, text=text, source=origin, max_segments=limit)


def _file_text(path: Path, form: TextSet | None) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            if path.suffix.lower() in JSON_LINES:
                rows: Iterator[str] = _json_rows(file, path, "text" if form is None else form.column)
            elif form is None:
                return file.read()
            else:
                rows = (form.row_of_line(line) for line in file)
            joint, most = (BETWEEN_DOCUMENTS, None) if form is None else (form.joint, form.max_rows)
            return joint.join(row for _, row in zip(range(most), rows, strict=False)) if most else joint.join(rows)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}.") from error


def _json_rows(file: TextIO, path: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}. Correct or remove that line.") from error
        row = value.get(column, value.get("text")) if isinstance(value, dict) else None
        if not isinstance(row, str):
            raise ValueError(f"{path}, line {number} has no text under {column!r}.")
        yield row


def _hub_name(form: TextSet) -> str:
    return " ".join(str(form.arguments[key]) for key in ("path", "name", "split") if key in form.arguments)


def _hub_rows(name: str, form: TextSet) -> list[str]:
    import datasets

    try:
        with hub_or_cache(form.arguments["path"]):
            rows = datasets.load_dataset(**form.arguments)
    except Exception as error:
        reason = missing_hub() or " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"The dataset of {name} ({form.arguments['path']}) cannot be loaded from the Hub: "
            f"{reason[:300].rstrip('.')}. "
            f"Pass a local copy: --ppl {name}=FILE; or another text: --ppl FILE."
        ) from error
    if form.max_rows is not None:
        rows = rows.select(range(min(form.max_rows, len(rows))))
    return [str(row) for row in rows[form.column]]
