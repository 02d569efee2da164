"""Results of evaluations: every figure with what it belongs to, and the file that keeps them."""

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
        model: the folder or hub name as it was given.
        fingerprint: a hash of what the model is: its files' names, sizes and contents (of a hub name, its commit).
        parameters: of the model, adapter merged.
        kind: one of :data:`KINDS`.
        name: of the data: ``"wikitext2"``, ``"piqa"``, a file's name.
        settings: everything that the figures depend on (segment length, stride, shots, limit, seed, dtype, device ...).
        data: where the data comes from, and its hash.
        values: the figures by name, such as ``{"perplexity": 5.69, "num_tokens": 341469}``; of completions
            ``{"completions": [{"prompt": ..., "completion": ...}, ...]}``.
        created: time, ISO 8601.
        seconds: that it took.
        versions: of the libraries; ``machine``: what it ran on.
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
        """What two entries must share to be the same measure of the same model."""
        same = (self.fingerprint, self.kind, self.name, self.settings, self.data)
        return json.dumps(same, sort_keys=True, default=str)

    @property
    def data_identity(self) -> dict[str, Any]:
        """What tells its data apart: not the place of a file whose content is known by its hash."""
        return {name: value for name, value in self.data.items() if name != "source" or "sha256" not in self.data}

    @property
    def label(self) -> str:
        """The name as it is printed.

        With it, of perplexity, the segment length, and the stride where that is another one; whether segments begin
        with a token of their own, where that is not as the tokenizer does it; that a chat template wrote the prompts;
        and that only the first segments, items or rows were measured, where that is so.
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
    """Entries in the order in which they were made."""

    entries: Sequence[Entry] = ()

    def find(self, key: str) -> Entry | None:
        """The newest entry of a key."""
        return next((entry for entry in reversed(self.entries) if entry.key == key), None)

    def with_(self, entry: Entry) -> Results:
        """These results and one more, in place of an older one of the same key."""
        return Results((*(old for old in self.entries if old.key != entry.key), entry))

    def to_text(self) -> str:
        """Strict JSON; NaN and infinities become ``null``."""
        values = {
            "format": _FORMAT,
            "version": _FORMAT_VERSION,
            "entries": [_plain(asdict(entry)) for entry in self.entries],
        }
        return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def read_results(path: str | Path) -> Results:
    """Read a file of results.

    Raises:
        ResultsError: it is none, or was written by a version that this one cannot read.
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
    """The entry, whose parts are of the kinds that they should be.

    Raises:
        TypeError: one is not.
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


# The file that results are kept in: found again, and added to one by one, also by several runs at a time.

_PATIENCE = 10.0
"""Seconds to wait for another run that writes, which takes a fraction of one."""


class ResultsFile:
    """A file of results, or none.

    Args:
        path: of the file; None keeps nothing.
        force: find nothing in it.

    Attributes:
        path: of the file.
        num_kept: entries that were added.

    Raises:
        ResultsError: what is there is no such file.
        ValueError: nothing can be written there.
    """

    def __init__(self, path: Path | None, *, force: bool) -> None:
        self.path, self.num_kept, self._force = path, 0, force
        if path is not None:
            check_file(path, example="evaluation.json")
        self._read()

    def find(self, key: str) -> Entry | None:
        """The newest entry of a key that may be used again."""
        if self._force:
            return None
        try:
            return self._read().find(key)
        except ResultsError:  # it was in order when the run began; adding says so
            return None

    def add(self, entry: Entry) -> None:
        """Write an entry; where the file was damaged meanwhile or the disk is full, say so, and let the run go on."""
        if self.path is None:
            return
        try:
            with claimed(self.path, patience=_PATIENCE):
                # Read anew: another run may have written since.
                write_text(self.path, self._read().with_(entry).to_text())
        except (ValueError, OSError) as error:
            logger.warning("%s of %s cannot be kept, only printed: %s", entry.label, entry.model, error)
        else:
            self.num_kept += 1

    def _read(self) -> Results:
        return read_results(self.path) if self.path is not None and self.path.exists() else Results()
