"""Rebuilds the report of a finished run with later evaluations: ``loraprune report``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loraprune.record.atomic import check_file, write_text
from loraprune.record.places import check_place
from loraprune.record.pruning_course import DimensionRecord
from loraprune.record.report_data import GroupMap, Importance, ReportData, Row
from loraprune.record.run_record import RECORD_FILE, RunRecord
from loraprune.report.card import with_rows
from loraprune.report.evaluation_rows import RunEntries, entry_rows, find_entries, with_entries
from loraprune.report.from_record import group_maps, report_of
from loraprune.structure.dimensions import WHOLE_KINDS

logger = logging.getLogger("loraprune")

_CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class ReportAgain:
    """A rebuilt report.

    Attributes:
        data: data of the report.
        page: file of the report.
        entries: results of evaluations, shown and not shown.
        card: model card, if its table was updated.
    """

    data: ReportData
    page: Path
    entries: RunEntries
    card: Path | None = None


def report_again(
    run: str | Path, evaluations: Sequence[str | Path] = (), *, output: str | Path | None = None, card: bool = False
) -> ReportAgain:
    """Rebuild the report of a run and add results of ``loraprune eval`` to it.

    Args:
        run: folder of a finished run, or the ``report.json`` in it.
        evaluations: files of results; ``evaluation.json`` in the folder is always used.
        output: file of the page; None is the ``report.html`` of the run. Its data are written beside it.
        card: also add the results to the table of the run's model card.

    Raises:
        ResultsError: a file is not a file of results, or has another version.
        ValueError: there is no run, its data or its card cannot be read, a file of results has no results of it, or
            the output exists and is not a report.
    """
    from loraprune.report.page import HEAD_OF_PAGES, write_report

    source = read_source(run)
    page = source.page if output is None else Path(output).expanduser()
    if page.suffix != ".html":
        raise ValueError(f"{page} does not end in .html, and a report is a web page. Call it {page.name}.html.")
    check_file(page, example="report.html", what="report", holds=HEAD_OF_PAGES)
    check_file(page.with_suffix(".json"), example="report.json", what="report", holds=b'"headline"', inputs=evaluations)
    if card:
        check_place(source.folder / _CARD)
    entries = find_entries(source.folder, source.base, evaluations)
    _tell_of_others(entries)
    data = with_entries(source.data, entries)
    path = source.folder / _CARD
    text = _card(path, [*entry_rows(entries), *data.scores]) if card else None
    write_report(data, page)
    if text is not None:
        write_text(path, text)
    return ReportAgain(data=data, page=page, entries=entries, card=path if card else None)


def _card(path: Path, rows: Sequence[Row]) -> str:
    try:
        return with_rows(path.read_text(encoding="utf-8"), rows)
    except (OSError, ValueError) as error:
        raise ValueError(f"The model card {path} cannot be updated: {error}.") from error


def _tell_of_others(entries: RunEntries) -> None:
    """Log the results that are not shown."""
    for file, stale in entries.stale.items():
        changed = ", ".join(dict.fromkeys(entry.model for entry in stale))
        logger.warning(
            "warning: %s has results of %s that are left out, because its files have changed. Evaluate it again.",
            file,
            changed,
        )
    for file, names in entries.foreign.items():
        logger.info("%s: left out results of other models: %s", file, ", ".join(dict.fromkeys(names)))


_DATA = "report.json"


@dataclass(frozen=True, kw_only=True)
class ReportSource:
    """A run whose report is rebuilt.

    Attributes:
        folder: folder of the run.
        page: file of its report.
        data: data of the report.
        base: name of the model that the run started from.
    """

    folder: Path
    page: Path
    data: ReportData
    base: str


def read_source(run: str | Path) -> ReportSource:
    """Read a run.

    The data of its old report are preferred, because they have what the record lacks: scores, completions, notes, and
    results that an earlier ``loraprune report`` added. A run without a report gets one from its record.

    Args:
        run: folder of the run, or the ``report.json`` in it.

    Raises:
        ValueError: there is no run, or its files cannot be read.
    """
    path = Path(run).expanduser()
    if path.is_file():
        if path.suffix != ".json" or path.name == RECORD_FILE:
            raise ValueError(f"{path} is not the data of a report. Name the folder of a run, or the {_DATA} in it.")
        data = with_maps(ReportData.from_json(path))
        return ReportSource(folder=path.parent, page=path.with_suffix(".html"), data=data, base=data.model)
    if not path.is_dir():
        raise ValueError(f"There is no folder {path}. Name the folder of a finished run.")
    if (path / _DATA).is_file():
        data = with_maps(ReportData.from_json(path / _DATA))
    elif (path / RECORD_FILE).is_file():
        data = _from_record(path / RECORD_FILE)
    else:
        raise ValueError(
            f"{path} has neither {_DATA} nor {RECORD_FILE}, so it is not a finished run of loraprune prune, oneshot or "
            "recover. Name the folder that a run wrote."
        )
    return ReportSource(folder=path, page=path / "report.html", data=data, base=data.model)


def _from_record(path: Path) -> ReportData:
    """Make a report from a record only, without scores of the groups and without completions.

    Raises:
        ValueError: the record cannot be read, or its run measured nothing.
    """
    record = RunRecord.read(path)
    try:
        return report_of(record)
    except (KeyError, ValueError) as error:
        what = f"the plan does not list {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"No report can be made from {path}: {what}.") from error


def with_maps(data: ReportData) -> ReportData:
    """Add maps to the report data of an earlier version, if it has the single groups."""
    if data.maps or not data.importance or data.recovery is not None:
        return data
    return replace(data, maps=_maps(data.importance))


def _maps(importance: Mapping[str, Importance]) -> tuple[GroupMap, ...]:
    dimensions = [
        DimensionRecord(name=name, kind=item.kind, layer=item.layer, groups=len(item.kept))
        for name, item in importance.items()
        if item.kind not in WHOLE_KINDS
    ]
    kept = {name: [group for group, stays in enumerate(item.kept) if stays] for name, item in importance.items()}
    return group_maps(dimensions, kept)
