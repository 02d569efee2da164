"""Results of ``loraprune eval`` as rows of a report: perplexities and accuracies, task scores, completions."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loraprune.measure.evaluation.results import Entry, read_results
from loraprune.measure.owner import Known, Owners
from loraprune.record.report_data import Completion, ReportData, Row, Unit

logger = logging.getLogger("loraprune")

METRICS = ("acc_norm", "acc", "exact_match", "f1")
"""Task metrics that are shares of one. The first one that a task has is used."""


def with_entries(data: ReportData, entries: RunEntries) -> ReportData:
    """Return the data of a report with added results, which replace older results of the same name."""
    pairs, rows = list(entries.pairs()), entry_rows(entries)
    scores = [row for pair in pairs for row in _score(*pair)]
    completions = [text for pair in pairs for text in _completions(*pair)]
    prompts = {text.prompt for text in completions}
    return replace(
        data,
        rows=_merged(data.rows, rows),
        scores=_with_average(_merged(_tasks(data.scores), scores), entries),
        completions=(*(text for text in data.completions if text.prompt not in prompts), *completions),
    )


def entry_rows(entries: RunEntries) -> list[Row]:
    """Rows of perplexities and accuracies, without task scores."""
    return [row for pair in entries.pairs() for row in _rows(*pair)]


def _merged(old: Sequence[Row], new: Sequence[Row]) -> tuple[Row, ...]:
    """Combine old and new rows; a new row replaces the old row of the same name."""
    labels = {row.label for row in new}
    return (*(row for row in old if row.label not in labels), *new)


def figure_of(entry: Entry | None, key: str) -> float | None:
    """Return a figure of an entry; None if it was not measured, NaN if it was not finite."""
    return None if entry is None else figure_in(entry.values, key)


def figure_in(values: Mapping[str, Any], key: str) -> float | None:
    """Return a figure by its name; None if missing, NaN if it was not finite (``null`` in the file)."""
    if key not in values:
        return None
    value = values[key]
    return float(value) if isinstance(value, (int, float)) else math.nan


def _perplexity(values: Mapping[str, Any]) -> str:
    return f"perplexity, {values.get('num_tokens', 0):,} tokens"


def _accuracy(values: Mapping[str, Any]) -> str:
    return f"accuracy, {values.get('num_examples', 0):,} examples"


def _matches(values: Mapping[str, Any]) -> str:
    return f"exact match, {values.get('num_generated', 0):,} targets"


_KINDS: dict[str, tuple[str, Unit, Callable[[Mapping[str, Any]], str]]] = {
    "perplexity": ("perplexity", Unit.PERPLEXITY, _perplexity),
    "accuracy": ("accuracy", Unit.ACCURACY, _accuracy),
    "targets": ("exact_match", Unit.ACCURACY, _matches),
}
"""For each kind of result: the figure shown, its unit, and its conditions."""


def _rows(dense: Entry | None, pruned: Entry | None) -> Iterable[Row]:
    either = pruned or dense
    assert either is not None
    if either.kind in _KINDS:
        key, unit, detail = _KINDS[either.kind]
        dtype = f", {either.settings['dtype']}" if "dtype" in either.settings else ""
        yield Row(
            label=either.label,
            unit=unit,
            detail=detail(either.values) + dtype,
            dense=figure_of(dense, key),
            pruned=figure_of(pruned, key),
        )


def _metric(entry: Entry) -> str | None:
    return next((metric for metric in METRICS if metric in entry.values), None)


def _score(dense: Entry | None, pruned: Entry | None) -> Iterable[Row]:
    either = pruned or dense
    assert either is not None
    metric = _metric(either) if either.kind == "task" else None
    if metric is None:
        return
    shots, items = either.values.get("num_fewshot"), either.values.get("num_items")
    parts = [metric, f"{shots} shots" if shots else "", f"{items:,} items" if items else ""]
    yield Row(
        label=either.name,
        unit=Unit.ACCURACY,
        detail=", ".join(filter(None, parts)),
        dense=figure_of(dense, metric),
        pruned=figure_of(pruned, metric),
    )


_AVERAGE = "average of"


def _tasks(scores: Sequence[Row]) -> tuple[Row, ...]:
    """Task scores without the averages over tasks."""
    return tuple(row for row in scores if not row.label.startswith(_AVERAGE))


def _with_average(scores: tuple[Row, ...], entries: RunEntries) -> tuple[Row, ...]:
    """Scores followed by the averages over the tasks that both models were measured on."""
    from loraprune.metrics.tasks.scores import averages

    both = [(d, p) for d, p in entries.pairs() if d is not None and p is not None and p.kind == "task"]
    dense, pruned = averages({d.name: d.values for d, _ in both}), averages({p.name: p.values for _, p in both})
    return (
        *scores,
        *(
            Row(
                label=f"{of_pruned.tasks}, {of_pruned.metric}",
                unit=Unit.ACCURACY,
                detail=", ".join(of_pruned.metrics),
                dense=of_dense.value,
                pruned=of_pruned.value,
            )
            for of_dense, of_pruned in zip(dense, pruned, strict=False)
            if of_dense.metric == of_pruned.metric
        ),
    )


def _completions(dense: Entry | None, pruned: Entry | None) -> Iterable[Completion]:
    """Completions of both models side by side; empty if only one model has them."""
    if dense is None or pruned is None or pruned.kind != "completions":
        return
    texts = {text["prompt"]: text["completion"] for text in dense.values["completions"]}
    for text in pruned.values["completions"]:
        if text["prompt"] in texts:
            yield Completion(prompt=text["prompt"], dense=texts[text["prompt"]], pruned=text["completion"])


RESULTS = "evaluation.json"
"""File that is read automatically from the folder of a run."""


@dataclass(kw_only=True)
class RunEntries:
    """Results grouped by model.

    Attributes:
        dense: results of the model before the run, the newest last; ``pruned``: of the result.
        foreign: names of other models, by file.
        stale: results of a folder whose model has changed since, by file.
    """

    dense: list[Entry] = field(default_factory=list)
    pruned: list[Entry] = field(default_factory=list)
    foreign: dict[Path, list[str]] = field(default_factory=dict)
    stale: dict[Path, list[Entry]] = field(default_factory=dict)

    def pairs(self) -> Iterator[tuple[Entry | None, Entry | None]]:
        """Pairs of results of both models under the same conditions; the newest of each."""
        dense, pruned = ({_condition(entry): entry for entry in side} for side in (self.dense, self.pruned))
        for condition in {**pruned, **dense}:
            yield dense.get(condition), pruned.get(condition)


def find_entries(folder: Path, base: str, files: Sequence[str | Path]) -> RunEntries:
    """Group the results of the files and of those beside the run.

    A model is identified by the hash of its files. Without files to hash (a Hub name, a deleted folder), it is
    identified by its name. The path of a folder is resolved from here or from the file of results.

    Args:
        folder: folder of the run.
        base: name of the starting model.
        files: files of results.

    Raises:
        ResultsError: a file is not a results file, or has another version.
        ValueError: a given file has no result of this run or of its base.
    """
    named = [Path(file).expanduser() for file in files]
    own = folder / RESULTS
    every = [*([own] if own.is_file() and own.resolve() not in {file.resolve() for file in named} else []), *named]
    owners = Owners({"pruned": Known(folder=folder), "dense": Known(folder=Path(base), name=base)})
    found = RunEntries()
    for file in every:
        before = len(found.dense) + len(found.pruned)
        for entry in sorted(read_results(file).entries, key=lambda entry: entry.created):
            owner = owners.of(entry.model, entry.fingerprint, file)
            if owner.key is None:
                found.foreign.setdefault(file, []).append(entry.model)
            elif owner.stale:
                found.stale.setdefault(file, []).append(entry)
            else:
                (found.pruned if owner.key == "pruned" else found.dense).append(entry)
        if file in named and len(found.dense) + len(found.pruned) == before:
            raise ValueError(_nothing(file, folder, base, found))
    return found


def _nothing(file: Path, folder: Path, base: str, found: RunEntries) -> str:
    stale = found.stale.get(file)
    if stale:
        return f"{file} holds results of an earlier version of {stale[0].model}. Evaluate it again."
    names = ", ".join(dict.fromkeys(found.foreign.get(file, ()))) or "no model"
    return (
        f"{file} has no results of {folder} or of the model that it was made from, {base}. Its results are of {names}. "
        "Name another file, or evaluate these models."
    )


def _condition(entry: Entry) -> str:
    """Return the conditions of a figure: everything it depends on except the model and the kind of device."""
    settings = {name: value for name, value in entry.settings.items() if name != "device"}
    return json.dumps([entry.kind, entry.name, settings, entry.data_identity], sort_keys=True, default=str)
