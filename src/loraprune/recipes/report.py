"""Results of ``loraprune eval`` as rows of a report: perplexities and accuracies, scores of tasks, completions."""

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
from loraprune.record.atomic import write_text
from loraprune.record.history import FILE as RECORD
from loraprune.record.report_data import Completion, GroupMap, Importance, ReportData, Row, Unit
from loraprune.record.run_record import group_maps
from loraprune.report.card import with_rows
from loraprune.report.from_record import report_of, shown_measures
from loraprune.structure.dimensions import WHOLE_KINDS
from loraprune.tasks.registry import TASKS
from loraprune.tasks.task import NONZERO, PARAMETERS, Measure

logger = logging.getLogger("loraprune")

METRICS = ("acc_norm", "acc", "exact_match", "f1")
"""Metrics of tasks that are shares of one; of a task the first that it has."""


def with_entries(data: ReportData, entries: RunEntries) -> ReportData:
    """The data of a report with results; those that it had of the same thing give way."""
    pairs, rows = list(entries.pairs()), rows_of(entries)
    scores = [row for pair in pairs for row in _score(*pair)]
    completions = [text for pair in pairs for text in _completions(*pair)]
    prompts = {text.prompt for text in completions}
    return replace(
        data,
        rows=_merged(data.rows, rows),
        scores=_with_average(_merged(_tasks(data.scores), scores), entries),
        completions=(*(text for text in data.completions if text.prompt not in prompts), *completions),
    )


def rows_of(entries: RunEntries) -> list[Row]:
    """Rows of perplexities and accuracies; scores of tasks are none of these."""
    return [row for pair in entries.pairs() for row in _rows(*pair)]


def _merged(old: Sequence[Row], new: Sequence[Row]) -> tuple[Row, ...]:
    """Old rows and new ones; a new row stands where an old one of the same name stood."""
    labels = {row.label for row in new}
    return (*(row for row in old if row.label not in labels), *new)


def _value(entry: Entry | None, key: str) -> float | None:
    value = None if entry is None else entry.values.get(key)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


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
"""Of a kind of result the figure that is shown, its unit, and how it was measured."""


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
            dense=_value(dense, key),
            pruned=_value(pruned, key),
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
        dense=_value(dense, metric),
        pruned=_value(pruned, metric),
    )


_AVERAGE = "average of"


def _tasks(scores: Sequence[Row]) -> tuple[Row, ...]:
    """Scores of tasks without the averages over them."""
    return tuple(row for row in scores if not row.label.startswith(_AVERAGE))


def _with_average(scores: tuple[Row, ...], entries: RunEntries) -> tuple[Row, ...]:
    """The scores, and below them the averages over the tasks that both models were measured on."""
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
    """Texts of both models side by side; nothing where only one of them wrote."""
    if dense is None or pruned is None or pruned.kind != "completions":
        return
    texts = {text["prompt"]: text["completion"] for text in dense.values["completions"]}
    for text in pruned.values["completions"]:
        if text["prompt"] in texts:
            yield Completion(prompt=text["prompt"], dense=texts[text["prompt"]], pruned=text["completion"])


# The report of a finished run made again, with what was measured of it since.

CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class ReportAgain:
    """What was made.

    Attributes:
        data: that the report shows.
        page: the report.
        entries: results of evaluations that it shows, and those that it does not.
        card: the model card, where its table was brought up to date.
    """

    data: ReportData
    page: Path
    entries: RunEntries
    card: Path | None = None


def report_again(
    run: str | Path, evaluations: Sequence[str | Path] = (), *, output: str | Path | None = None, card: bool = False
) -> ReportAgain:
    """Make the report of a run again, and add results of ``loraprune eval`` to it.

    Args:
        run: folder of a finished run, or the ``report.json`` in it.
        evaluations: files of results; ``evaluation.json`` in the folder counts by itself.
        output: the page; None is the ``report.html`` of the run. Its data are written beside it.
        card: also put the results into the table of the run's model card.

    Raises:
        ResultsError: a file is no file of results, or one of another version.
        ValueError: there is no run, its data or its card cannot be read, or a file of results holds nothing of it.
    """
    from loraprune.report.page import write_report

    source = read_source(run)
    page = source.page if output is None else Path(output).expanduser()
    if page.suffix != ".html":
        raise ValueError(f"A report is a web page, but {page} does not end in .html. Call it {page.name}.html.")
    entries = find_entries(source.folder, source.base, evaluations)
    _tell_of_others(entries)
    data = with_entries(source.data, entries)
    path = source.folder / CARD
    text = _card(path, [*rows_of(entries), *data.scores]) if card else None
    write_report(data, page)
    if text is not None:
        write_text(path, text)
    return ReportAgain(data=data, page=page, entries=entries, card=path if card else None)


def _card(path: Path, rows: Sequence[Row]) -> str:
    try:
        return with_rows(path.read_text(encoding="utf-8"), rows)
    except (OSError, ValueError) as error:
        raise ValueError(f"The model card {path} cannot be brought up to date: {error}.") from error


def _tell_of_others(entries: RunEntries) -> None:
    """Say what of the results is not shown."""
    for file, stale in entries.stale.items():
        changed = ", ".join(dict.fromkeys(entry.model for entry in stale))
        logger.warning(
            "warning: %s has results of %s that are left out: its files are others now. Evaluate it again.",
            file,
            changed,
        )
    for file, names in entries.foreign.items():
        logger.info("%s: left out are results of other models: %s", file, ", ".join(dict.fromkeys(names)))


# What a report is made from again: the data beside the old one, or the record of the run.

DATA = "report.json"


@dataclass(frozen=True, kw_only=True)
class ReportSource:
    """A run whose report is to be made again.

    Attributes:
        folder: of the run.
        page: where its report is.
        data: that the report shows.
        base: name of the model that the run began with.
    """

    folder: Path
    page: Path
    data: ReportData
    base: str


def read_source(run: str | Path) -> ReportSource:
    """Read a run.

    The data of its old report come first, for they hold what the record does not: scores, completions, notes, and what
    an earlier ``loraprune report`` added. A run without a report gets one from its record.

    Args:
        run: its folder, or the ``report.json`` in it.

    Raises:
        ValueError: there is no run, or what there is of it cannot be read.
    """
    path = Path(run).expanduser()
    if path.is_file():
        if path.suffix != ".json" or path.name == RECORD:
            raise ValueError(f"{path} is no data of a report. Name the folder of a run, or the {DATA} in it.")
        data = with_maps(ReportData.from_json(path))
        return ReportSource(folder=path.parent, page=path.with_suffix(".html"), data=data, base=data.model)
    if not path.is_dir():
        raise ValueError(f"There is no folder {path}. Name that of a finished run.")
    if (path / DATA).is_file():
        data = with_maps(ReportData.from_json(path / DATA))
    elif (path / RECORD).is_file():
        data = _from_record(path / RECORD)
    else:
        raise ValueError(
            f"{path} holds neither {DATA} nor {RECORD}, so that it is no finished run of loraprune prune, oneshot or "
            "recover. Name the folder that a run wrote."
        )
    return ReportSource(folder=path, page=path / "report.html", data=data, base=data.model)


def _from_record(path: Path) -> ReportData:
    """The report of a record alone: without scores of the groups and without completions.

    Raises:
        ValueError: the record cannot be read, or is that of a run that measured nothing.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("it holds no object")
        if "metrics" not in record:
            raise ValueError("it holds no measures, as one that save_pruned wrote")
        return report_of(record, _measures(record))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"No report can be made from {path}: {what}.") from error


def _measures(record: Mapping[str, Any]) -> tuple[Measure, ...]:
    task = next((task for task in TASKS if task.name == record["task"]), None)
    if task is None:
        raise ValueError(f"the task {record['task']!r} is unknown")
    if "oneshot" in record["settings"] and "sparsity" in record["metrics"]:
        return tuple(NONZERO if measure is PARAMETERS else measure for measure in task.measures)
    return shown_measures(task.measures, record["metrics"])


def with_maps(data: ReportData) -> ReportData:
    """The data of a report of an earlier version with maps, as far as it knew the groups one by one."""
    if data.maps or not data.importance or data.recovery is not None:
        return data
    return replace(data, maps=_maps(data.importance))


def _maps(importance: Mapping[str, Importance]) -> tuple[GroupMap, ...]:
    dimensions = [
        {"name": name, "kind": item.kind, "layer": item.layer, "groups": len(item.kept)}
        for name, item in importance.items()
        if item.kind not in WHOLE_KINDS
    ]
    kept = {name: [group for group, stays in enumerate(item.kept) if stays] for name, item in importance.items()}
    return group_maps(dimensions, kept)


# Which results of ``loraprune eval`` are of a run and which of the model that it began with.

RESULTS = "evaluation.json"
"""Picked up from the folder of a run by itself."""


@dataclass(kw_only=True)
class RunEntries:
    """Results sorted by the model that they are of.

    Attributes:
        dense: of the model before the run, the newest last; ``pruned``: of the result.
        foreign: names of other models, by file.
        stale: results of a folder that holds another model by now, by file.
    """

    dense: list[Entry] = field(default_factory=list)
    pruned: list[Entry] = field(default_factory=list)
    foreign: dict[Path, list[str]] = field(default_factory=dict)
    stale: dict[Path, list[Entry]] = field(default_factory=dict)

    def pairs(self) -> Iterator[tuple[Entry | None, Entry | None]]:
        """Results of both models that were measured in the same way side by side; the newest of each."""
        dense, pruned = ({_condition(entry): entry for entry in side} for side in (self.dense, self.pruned))
        for condition in {**pruned, **dense}:
            yield dense.get(condition), pruned.get(condition)


def find_entries(folder: Path, base: str, files: Sequence[str | Path]) -> RunEntries:
    """Sort the results of the files, and of those beside the run.

    A model is known by the hash of its files. Where there are none to hash (a hub name, a folder that is gone), it is
    known by its name: a folder by its place, seen from here or from the file of results.

    Args:
        folder: of the run.
        base: name of the model that the run began with.
        files: of results.

    Raises:
        ResultsError: a file is none, or one of another version.
        ValueError: none of the results of a file that was named is of this run or of its base.
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
        return f"{file} holds results of {stale[0].model} as it was before it was written anew. Evaluate it again."
    names = ", ".join(dict.fromkeys(found.foreign.get(file, ()))) or "no model"
    return (
        f"Of the results in {file} none is of {folder} or of the model that it was made from, {base}: they are of "
        f"{names}. Name another file, or evaluate these models."
    )


def _condition(entry: Entry) -> str:
    """How a figure was measured: all that it depends on but the model and the kind of device."""
    settings = {name: value for name, value in entry.settings.items() if name != "device"}
    return json.dumps([entry.kind, entry.name, settings, entry.data_identity], sort_keys=True, default=str)
