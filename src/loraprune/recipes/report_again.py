"""The report of a finished run made again, with what was measured of it since."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loraprune.recipes.report import rows_of, with_entries
from loraprune.recipes.report_source import read_source
from loraprune.recipes.run_entries import RunEntries, find_entries
from loraprune.record.atomic import write_text
from loraprune.record.report_data import ReportData, Row
from loraprune.report.card_table import with_rows

logger = logging.getLogger("loraprune")

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
    from loraprune.report.html import write_report

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
