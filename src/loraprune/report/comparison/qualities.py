"""Quality measures of runs, and which of them are comparable."""

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
"""Relative difference up to which two runs are treated as having measured the same dense model on the same data."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Description of the figure with a certain key."""

    label: str
    unit: Unit
    higher_is_better: bool = False

    def quality(self, name: str, of: str, facts: Mapping[str, Any]) -> Quality:
        """Return the measure for some data; ``of`` precedes the label."""
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
"""Keys of figures in records and results. If an entry has several, the first is the default."""

NEUTRAL = ("batch_size", "device", "dtype", "threads", "attn_implementation")
"""Evaluation settings that affect only the last digits of a figure."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A starting model and its figure.

    Attributes:
        name: last part of its name.
        what: description: ``"dense"``, ``"2:4 sparse by wanda"``.
        quality: the figure.
        measures: size of the model.
    """

    name: str
    what: str
    quality: float
    measures: ModelMeasures


@dataclass(frozen=True, kw_only=True)
class QualityFigure:
    """A figure of one model.

    Attributes:
        quality: the measure.
        value: the figure; NaN if the model returned NaN.
        data: fingerprint of the measure and its data; None in records older than fingerprints.
        reference: for a figure from a record, the starting model of the run or of its first predecessor.
        dtype: dtype of the model in the measurement, if known.
        parameters: parameters of the model, if the file of the figure has them.
    """

    quality: Quality
    value: float
    data: str | None
    reference: Reference | None = None
    dtype: str = ""
    parameters: int | None = field(default=None, compare=False)

    def compares_with(self, other: QualityFigure) -> bool:
        """Whether both are the same measurement of two models.

        Figures without a fingerprint count as the same measurement if both records have the same figure for the same
        model.
        """
        if self.data and other.data:
            return self.data == other.data
        one, two = self.reference, other.reference
        if one is None or two is None or (self.quality, one.name) != (other.quality, two.name):
            return False
        return same_figure(one.quality, two.quality)


def same_figure(one: float | None, other: float | None) -> bool:
    """Whether two figures of one model are equal up to their last digits."""
    return one is not None and other is not None and math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=1e-9)


def _fingerprint(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True, default=str)


def record_figures(run: Run) -> dict[str, QualityFigure]:
    """Return the figures in a run's own record, by name of the measure."""
    figures = {}
    for key, kind in _KINDS.items():
        value: float | None = getattr(run.after, key, None)
        if run.record is not None and value is not None and getattr(run.before, key) is not None:
            quality = kind.quality(key, "held-out", _facts(key, run.after))
            data = run.after.data_fingerprint and _fingerprint("record", key, run.after.data_fingerprint)
            figures[key] = QualityFigure(quality=quality, value=value, data=data, reference=_reference(run, key))
    return figures


def _facts(key: str, measures: ModelMeasures) -> dict[str, int]:
    """Return the conditions of a measure that readers see."""
    wanted = ("num_generated",) if key == "exact_match" else ("segment_length", "num_tokens", "num_examples")
    return {name: value for name in wanted if (value := getattr(measures, name)) is not None}


def _alike(key: str, one: ModelMeasures, other: ModelMeasures) -> bool:
    """Whether figures of two models are the same measurement, as far as their records show."""
    if one.data_fingerprint and other.data_fingerprint:
        return one.data_fingerprint == other.data_fingerprint
    return _facts(key, one) == _facts(key, other)


def _reference(run: Run, key: str) -> Reference | None:
    """Return the first model of a chain of runs whose figures all come from the same measurement."""
    if not _alike(key, run.before, run.after):
        return None
    base, before = run.base, getattr(run.before, key)
    if base is not None and _alike(key, base.after, run.before) and same_figure(getattr(base.after, key), before):
        return _reference(base, key)
    return Reference(name=last_part(run.base_name), what=run.base_words, quality=before, measures=run.before)


def entry_figures(entries: Sequence[Entry]) -> dict[str, QualityFigure]:
    """Return figures of one model from ``loraprune eval``, by name of the measure. Newer entries replace older ones."""
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
    # Perplexities per token are comparable only if the models split the text into the same tokens.
    tokens = entry.values.get("num_tokens") if key in ("perplexity", "loss") else None
    version = entry.values.get("version")
    items = entry.values.get("num_items")
    shown = {setting: value for setting, value in settings.items() if setting != "limit"}  # the label includes it
    return QualityFigure(
        quality=_KINDS[key].quality(name, entry.label, {**shown, "num_tokens": tokens, "num_items": items}),
        value=_number(entry.values[key]),
        data=_fingerprint(entry.kind, entry.name, key, settings, entry.data_identity, tokens, version, items),
        dtype=str(entry.settings.get("dtype") or ""),
        parameters=entry.parameters,
    )


def _average_figures(entries: Sequence[Entry]) -> dict[str, QualityFigure]:
    """Return the task averages, as the evaluation prints them."""
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
    """Describe the data of a figure: ``"128-token segments, 12,800 tokens"``."""
    whole = {name: value for name, value in facts.items() if isinstance(value, int) and not isinstance(value, bool)}
    return ", ".join(_WORDS[name](value) for name, value in whole.items() if name in _WORDS)


# Results of ``loraprune eval`` for a comparison, and the run or model of each figure.

RESULTS_FILE = "evaluation.json"


@dataclass(frozen=True)
class Compared:
    """The run or model of a figure.

    Attributes:
        name: display name of a run; for a starting model, the last part of its name.
        began: whether it is a starting model.
    """

    name: str
    began: bool = False


def read_entries(files: Sequence[str | Path], folders: Sequence[Path]) -> list[tuple[Path, Entry]]:
    """Return the entries of the given files, then those in the folders, each with its file.

    Raises:
        ResultsError: a given file cannot be read. An unreadable file in a folder is skipped with a warning.
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
    """The compared runs and their starting models, identified by the model descriptions in files of figures.

    Attributes:
        owners: these runs and models.
        stale: names of those whose files have changed since they were measured, by file of figures.
    """

    owners: Owners[Compared]
    stale: dict[Path, dict[str, None]] = field(default_factory=dict)

    @classmethod
    def among(cls, folders: Mapping[str, Path], models: Mapping[str, Path]) -> ComparedModels:
        """Return the runs in these folders by display name, and their starting models.

        Args:
            folders: folders of the runs.
            models: names of the models, with the folders that may hold them.
        """
        known = {Compared(run): Known(folder=folder) for run, folder in folders.items()}
        known |= {Compared(last_part(name), began=True): Known(folder=at, name=name) for name, at in models.items()}
        return cls(Owners(known, by_own_name=True))

    def of(self, name: str, fingerprint: str | None, file: Path) -> Compared | None:
        """Return the owner of a figure. None if there is none, or if the owner's files have changed, which is noted."""
        found = self.owners.of(name, fingerprint, file)
        if found.stale:
            self.stale.setdefault(file, {})[name] = None
            return None
        return found.key

    def notes(self) -> list[str]:
        """Return a sentence about each file with outdated figures."""
        return [
            f"Figures of {', '.join(names)} in {file} are left out: these models have changed since. Measure them "
            "again."
            for file, names in self.stale.items()
        ]
