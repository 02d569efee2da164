"""Measures of quality that runs have, and which of them compare with each other."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraprune.measure.evaluation.results import Entry, ResultsError, read_results
from loraprune.measure.owner import Known, Owners
from loraprune.record.report_data import Unit
from loraprune.record.run_record import ModelMeasures
from loraprune.report.comparison.result import Quality
from loraprune.report.comparison.runs import Run, last_part

logger = logging.getLogger("loraprune")

_TOLERANCE = 1e-3
"""Relative difference up to which two runs measured the same dense model on the same data."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a figure with a certain key is."""

    label: str
    unit: Unit
    higher_is_better: bool = False

    def quality(self, name: str, of: str, facts: Mapping[str, Any]) -> Quality:
        """The measure, of some data: ``of`` stands before the label."""
        return Quality(
            name=name,
            label=f"{of} {self.label}",
            unit=self.unit,
            detail=facts_in_words(facts),
            higher_is_better=self.higher_is_better,
        )


_KINDS: dict[str, Kind] = {
    "perplexity": Kind(label="perplexity", unit=Unit.PERPLEXITY),
    "acc": Kind(label="accuracy", unit=Unit.ACCURACY, higher_is_better=True),
    "accuracy": Kind(label="accuracy", unit=Unit.ACCURACY, higher_is_better=True),
    "acc_norm": Kind(label="normalized accuracy", unit=Unit.ACCURACY, higher_is_better=True),
    "exact_match": Kind(label="exact match", unit=Unit.ACCURACY, higher_is_better=True),
    "word_perplexity": Kind(label="perplexity per word", unit=Unit.PERPLEXITY),
    "bits_per_byte": Kind(label="bits per byte", unit=Unit.BITS_PER_BYTE),
    "loss": Kind(label="loss", unit=Unit.LOSS),
}
"""Keys of figures in records and results; of one entry, the first is the one meant where none is named."""

NEUTRAL = ("batch_size", "device", "dtype", "threads", "attn_implementation")
"""Settings of an evaluation that change the last digits of a figure at most."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A model that runs began with, and its figure.

    Attributes:
        name: the last part of its own.
        what: it is: ``"dense"``, ``"2:4 sparse by wanda"``.
        quality: the figure.
        measures: its size.
    """

    name: str
    what: str
    quality: float
    measures: ModelMeasures


@dataclass(frozen=True, kw_only=True)
class QualityFigure:
    """A figure of one model.

    Attributes:
        quality: what it measures.
        value: the figure; NaN where the model gave none.
        data: fingerprint of what was measured, and on what; None in records that are older than fingerprints.
        reference: of a record, the model that the run, or the first one before it, began with.
        dtype: that it was measured in, where known.
        parameters: of the model, where the file of the figure knows them.
    """

    quality: Quality
    value: float
    data: str | None
    reference: Reference | None = None
    dtype: str = ""
    parameters: int | None = field(default=None, compare=False)

    def compares_with(self, other: QualityFigure) -> bool:
        """Whether the two are the same measurement of two models.

        That of records without a fingerprint is, if both found the same figure of the same model.
        """
        if self.data and other.data:
            return self.data == other.data
        one, two = self.reference, other.reference
        if one is None or two is None or (self.quality, one.name) != (other.quality, two.name):
            return False
        return same_figure(one.quality, two.quality)


def same_figure(one: float | None, other: float | None) -> bool:
    """Whether two figures of one model are the same but for their last digits."""
    return one is not None and other is not None and math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=1e-9)


def _fingerprint(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True, default=str)


def record_figures(run: Run) -> dict[str, QualityFigure]:
    """Figures that a run's own record has, by name of the measure."""
    figures = {}
    for key, kind in _KINDS.items():
        value: float | None = getattr(run.after, key, None)
        if run.record is not None and value is not None and getattr(run.before, key) is not None:
            quality = kind.quality(key, "held-out", _facts(key, run.after))
            data = run.after.data_fingerprint and _fingerprint("record", key, run.after.data_fingerprint)
            figures[key] = QualityFigure(quality=quality, value=value, data=data, reference=_reference(run, key))
    return figures


def _facts(key: str, measures: ModelMeasures) -> dict[str, int]:
    """What a quality was measured on, as far as a reader is told."""
    wanted = ("num_generated",) if key == "exact_match" else ("segment_length", "num_tokens", "num_examples")
    return {name: value for name in wanted if (value := getattr(measures, name)) is not None}


def _alike(key: str, one: ModelMeasures, other: ModelMeasures) -> bool:
    """Whether a figure of two models is the same measurement, as far as their records know."""
    if one.data_fingerprint and other.data_fingerprint:
        return one.data_fingerprint == other.data_fingerprint
    return _facts(key, one) == _facts(key, other)


def _reference(run: Run, key: str) -> Reference | None:
    """The first model of a chain of runs whose figures are all of one measurement."""
    if not _alike(key, run.before, run.after):
        return None
    base, before = run.base, getattr(run.before, key)
    if base is not None and _alike(key, base.after, run.before) and same_figure(getattr(base.after, key), before):
        return _reference(base, key)
    return Reference(name=last_part(run.base_name), what=run.base_words, quality=before, measures=run.before)


def entry_figures(entries: Sequence[Entry]) -> dict[str, QualityFigure]:
    """Figures of one model that ``loraprune eval`` measured, by name of the measure; newer entries win."""
    found: dict[str, QualityFigure] = {}
    for entry in entries:
        keys = [key for key in _KINDS if key in entry.values]
        for position, key in enumerate(keys):
            name = entry.label if position == 0 else f"{entry.label}:{key}"
            found[name] = _entry_figure(entry, key, name)
    return found | _average_figures([entry for entry in entries if entry.kind == "task"])


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _entry_figure(entry: Entry, key: str, name: str) -> QualityFigure:
    settings = {setting: value for setting, value in entry.settings.items() if setting not in NEUTRAL}
    # Perplexities per token compare between models only if these cut the text into the same tokens.
    tokens = entry.values.get("num_tokens") if key in ("perplexity", "loss") else None
    version = entry.values.get("version")
    items = entry.values.get("num_items")
    shown = {setting: value for setting, value in settings.items() if setting != "limit"}  # the label says it
    return QualityFigure(
        quality=_KINDS[key].quality(name, entry.label, {**shown, "num_tokens": tokens, "num_items": items}),
        value=_number(entry.values[key]),
        data=_fingerprint(entry.kind, entry.name, key, settings, entry.data_identity, tokens, version, items),
        dtype=str(entry.settings.get("dtype") or ""),
        parameters=entry.parameters,
    )


def _average_figures(entries: Sequence[Entry]) -> dict[str, QualityFigure]:
    """Averages over tasks, as the evaluation prints them."""
    by_name = {entry.name: entry for entry in entries}
    if len(by_name) < 2:
        return {}
    from loraprune.metrics.tasks.scores import averages

    found: dict[str, QualityFigure] = {}
    for average in averages({name: entry.values for name, entry in by_name.items()}):
        parts = [_entry_figure(by_name[name], key, "") for name, key in average.metrics.items()]
        name = f"{average.tasks}:{average.metric}" if found else average.tasks
        found[name] = QualityFigure(
            quality=Quality(
                name=name,
                label=f"{average.tasks}, {average.metric}",
                unit=Unit.ACCURACY,
                detail=", ".join(average.metrics),
                higher_is_better=True,
            ),
            value=average.value,
            data=_fingerprint(name, sorted(str(part.data) for part in parts)),
            dtype=parts[0].dtype,
            parameters=parts[0].parameters,
        )
    return found


_WORDS: dict[str, Callable[[int], str]] = {
    "segment_length": "{:,}-token segments".format,
    "num_tokens": "{:,} tokens".format,
    "num_examples": "{:,} examples".format,
    "num_generated": "{:,} generated".format,
    "num_items": "{:,} items".format,
    "num_fewshot": "{}-shot".format,
    "limit": "the first {:,} only".format,
}


def facts_in_words(facts: Mapping[str, Any]) -> str:
    """What a figure was measured on: ``"128-token segments, 12,800 tokens"``."""
    whole = {name: value for name, value in facts.items() if isinstance(value, int) and not isinstance(value, bool)}
    return ", ".join(_WORDS[name](value) for name, value in whole.items() if name in _WORDS)


# Results of ``loraprune eval`` for a comparison, and which run or model a figure in such a file is of.

RESULTS_FILE = "evaluation.json"


@dataclass(frozen=True)
class Compared:
    """What a figure is of.

    Attributes:
        name: that a run is shown under; of a model that runs began with, the last part of its own.
        began: whether it is such a model.
    """

    name: str
    began: bool = False


def read_entries(files: Sequence[str | Path], folders: Sequence[Path]) -> list[tuple[Path, Entry]]:
    """Entries of the files named, then of those in the folders, each with its file.

    Raises:
        ResultsError: a file that was named cannot be read; one that lies in a folder is left out with a warning.
    """
    named = [Path(file) for file in files]
    found = [(file, entry) for file in named for entry in read_results(file).entries]
    known = {file.resolve() for file in named}
    for folder in folders:
        file = folder / RESULTS_FILE
        if file.is_file() and file.resolve() not in known:
            try:
                found += [(file, entry) for entry in read_results(file).entries]
            except ResultsError as error:
                logger.warning("warning: %s is left out: %s", file, error)
    return found


@dataclass
class ComparedModels:
    """The runs that are compared and the models that they began with, told apart by what files of figures say of them.

    Attributes:
        owners: these models.
        stale: names of those that had other files when they were measured, by file of figures.
    """

    owners: Owners[Compared]
    stale: dict[Path, dict[str, None]] = field(default_factory=dict)

    @classmethod
    def among(cls, folders: Mapping[str, Path], models: Mapping[str, Path]) -> ComparedModels:
        """The runs in these folders, by the names that they are shown under, and the models that they began with.

        Args:
            folders: of the runs.
            models: names of the models, with the folders that may hold them.
        """
        known = {Compared(run): Known(folder=folder) for run, folder in folders.items()}
        known |= {Compared(last_part(name), began=True): Known(folder=at, name=name) for name, at in models.items()}
        return cls(Owners(known, by_own_name=True))

    def of(self, name: str, fingerprint: str | None, file: Path) -> Compared | None:
        """What a figure is of; None where it is of none of them, or of an older state of one, which is noted."""
        found = self.owners.of(name, fingerprint, file)
        if found.stale:
            self.stale.setdefault(file, {})[name] = None
            return None
        return found.key

    def notes(self) -> list[str]:
        """A sentence about each file with figures of older states."""
        return [
            f"Figures of {', '.join(names)} in {file} are left out: the files of these models are others now. Measure "
            "them again."
            for file, names in self.stale.items()
        ]
