"""Results of evaluations: every figure with its conditions, and the file format."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from loraprune.record.atomic import check_file, write_text
from loraprune.record.claims import claimed
from loraprune.record.codec import read_json

logger = logging.getLogger("loraprune")

_FORMAT = "loraprune-evaluation"
_FORMAT_VERSION = 1

KINDS = ("perplexity", "task", "completions", "accuracy", "targets")
"""What an entry can be: perplexity of a text, a task of multiple choice and the like, completions of prompts, accuracy
of a classifier, and targets that an encoder–decoder model writes."""


_MAPPINGS = ("settings", "data", "values", "versions", "machine")


class ResultsError(ValueError):
    """A file of results cannot be used; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One measure of one model.

    Attributes:
        model: folder or Hub name as given.
        fingerprint: hash that identifies the model: its files' names, sizes and contents (for a Hub name, its commit).
        parameters: parameters of the model, with the adapter merged.
        kind: one of :data:`KINDS`.
        name: name of the data: ``"wikitext2"``, ``"piqa"``, a file's name.
        settings: all conditions of the figures (segment length, stride, shots, limit, seed, dtype, device ...).
        data: source of the data, and its hash.
        values: figures by name, such as ``{"perplexity": 5.69, "num_tokens": 341469}``; for completions
            ``{"completions": [{"prompt": ..., "completion": ...}, ...]}``.
        created: time, ISO 8601.
        seconds: duration of the measurement.
        versions: versions of the libraries; ``machine``: machine of the measurement.
    """

    model: str
    fingerprint: str
    parameters: int | None = None
    kind: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    seconds: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Key that two entries share if they are the same measure of the same model."""
        same = (self.fingerprint, self.kind, self.name, self.settings, self.data)
        return json.dumps(same, sort_keys=True, default=str)

    @property
    def data_identity(self) -> dict[str, Any]:
        """Identity of its data. The path does not count for a file with a known hash."""
        return {name: value for name, value in self.data.items() if name != "source" or "sha256" not in self.data}

    @property
    def label(self) -> str:
        """Name to print.

        For perplexity, it includes the segment length and, if different, the stride. It also says if segments start
        with a token of their own, unlike the tokenizer's default, if a chat template wrote the prompts, and if only the
        first segments, items or rows were measured.
        """
        length, stride, limit = (self.settings.get(name) for name in ("max_length", "stride", "limit"))
        label = self.name
        if self.kind == "perplexity" and length is not None:
            label += f"@{length}" + (f"/{stride}" if stride not in (None, length) else "")
            bos = self.settings.get("bos")
            label += "" if bos is None else ", BOS" if bos else ", no BOS"
        if self.settings.get("chat_template"):
            label += ", chat"
        return label if limit is None else f"{label}, first {limit}"


@dataclass(frozen=True)
class Results:
    """Entries in order of creation."""

    entries: Sequence[Entry] = ()

    def find(self, key: str) -> Entry | None:
        """Return the newest entry of a key."""
        return next((entry for entry in reversed(self.entries) if entry.key == key), None)

    def with_(self, entry: Entry) -> Results:
        """Return the results with one more entry, which replaces older ones of the same key."""
        return Results((*(old for old in self.entries if old.key != entry.key), entry))

    def to_text(self) -> str:
        """Return strict JSON; NaN and infinities become ``null``."""
        values = {
            "format": _FORMAT,
            "version": _FORMAT_VERSION,
            "entries": [_plain(asdict(entry)) for entry in self.entries],
        }
        return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def read_results(path: str | Path) -> Results:
    """Read a file of results.

    Raises:
        ResultsError: it is not such a file, or its version is not supported.
    """
    try:
        values = read_json(Path(path))
    except (OSError, ValueError) as error:
        raise ResultsError(
            f"{path} cannot be read as results of loraprune eval: {error}. Name another file."
        ) from error
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise ResultsError(f"{path} was not written by loraprune eval. Name another file.")
    if values.get("version") != _FORMAT_VERSION:
        raise ResultsError(
            f"{path} has version {values.get('version')} of the format of results, and this loraprune reads version "
            f"{_FORMAT_VERSION}. Name a new file with --output, or install the loraprune that wrote it."
        )
    known = {field.name for field in fields(Entry)}
    try:
        given = [{name: value for name, value in item.items() if name in known} for item in values["entries"]]
        entries = [_checked(Entry(**item)) for item in given]
    except (AttributeError, KeyError, TypeError) as error:
        raise ResultsError(f"{path} is damaged: {error}. Name a new file with --output.") from error
    return Results(tuple(entries))


def _checked(entry: Entry) -> Entry:
    """Return the entry after checking the types of its parts.

    Raises:
        TypeError: a type is wrong.
    """
    for kind, names in ((str, ("model", "fingerprint", "kind", "name", "created")), (Mapping, _MAPPINGS)):
        for name in names:
            if not isinstance(getattr(entry, name), kind):
                raise TypeError(f"the {name} of an entry is {getattr(entry, name)!r}")
    return entry


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# The file of results: read at the start, and extended one entry at a time, possibly by several runs.

_PATIENCE = 10.0
"""Seconds to wait for another run's write, which takes a fraction of one."""


class ResultsFile:
    """A file of results, or none.

    Args:
        path: path of the file; None keeps nothing.
        force: ignore existing results.

    Attributes:
        path: path of the file.
        num_kept: number of entries added.

    Raises:
        ResultsError: the existing file is not such a file.
        ValueError: nothing can be written there.
    """

    def __init__(self, path: Path | None, *, force: bool) -> None:
        self.path, self.num_kept, self._force = path, 0, force
        if path is not None:
            check_file(path, example="evaluation.json")
        self._read()

    def find(self, key: str) -> Entry | None:
        """Return the newest reusable entry of a key."""
        if self._force:
            return None
        try:
            return self._read().find(key)
        except ResultsError:  # it was valid when the run started; adding an entry reports damage
            return None

    def add(self, entry: Entry) -> None:
        """Write an entry. If the file was damaged meanwhile or the disk is full, warn and continue the run."""
        if self.path is None:
            return
        try:
            with claimed(self.path, patience=_PATIENCE):
                # Read again, because another run may have written.
                write_text(self.path, self._read().with_(entry).to_text())
        except (ValueError, OSError) as error:
            logger.warning("%s of %s cannot be kept, only printed: %s", entry.label, entry.model, error)
        else:
            self.num_kept += 1

    def _read(self) -> Results:
        return read_results(self.path) if self.path is not None and self.path.exists() else Results()
