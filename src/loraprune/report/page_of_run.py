"""The report of a run that is over: what can go wrong in drawing it is no reason to lose the model."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loraprune.record.report_data import ReportData

logger = logging.getLogger("loraprune")


def write_page(report: ReportData, folder: Path, output: Path) -> None:
    """Write page and data of a report; where that fails, say so, and leave the data to make it from.

    Args:
        report: of the run.
        folder: to write into.
        output: where that folder will be, for the message.
    """
    page = folder / "report.html"
    try:
        from loraprune.report.html import write_report

        write_report(report, page)
    except Exception as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        logger.warning(
            "warning: the report could not be drawn (%s). All else is there, and `loraprune report %s` tries it again.",
            what,
            output,
        )
        with suppress(Exception):
            report.to_json(page.with_suffix(".json"))
