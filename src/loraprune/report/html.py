"""The report as one web page that needs nothing but itself."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from loraprune.record import atomic
from loraprune.report import before_after, page, tables
from loraprune.report.charts import sections
from loraprune.report.figures.refit_figure import refit_table
from loraprune.report.figures.scores_figure import scores_figure
from loraprune.report.tile import tiles
from loraprune.report.verdict import verdict

if TYPE_CHECKING:
    from loraprune.record.report_data import ReportData


def write_report(data: ReportData, path: str | Path) -> None:
    """Write the page to ``path`` and the data as JSON beside it, under the same name with ``.json``.

    Each file appears complete or not at all; the page last.

    Raises:
        ValueError: ``path`` does not end in ``.html``.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise ValueError(f"A report is a web page, but {path} does not end in .html. Call it {path.name}.html.")
    text = render_report(data)
    data.to_json(path.with_suffix(".json"))
    atomic.write_text(path, text)


def render_report(data: ReportData) -> str:
    """Render the page; all text of the data is escaped."""
    sparse = data.headline.sparsity is not None
    return page.render(
        "report.html.j2",
        data=data,
        created=readable_time(data.created),
        verdict=verdict(data),
        summary=before_after.summary(data),
        tiles=tiles(data),
        rows=before_after.format_rows(data),
        unrecovered=before_after.has_unrecovered(data),
        sections=sections(data),
        scores=[before_after.format_row(row) for row in data.scores],
        scores_figure=scores_figure(data.scores, data.before, data.after) if data.scores else None,
        widths=tables.width_grid(data.layers),
        cuts=tables.cut_grid(data.cuts, "zero" if sparse else "removed"),
        refits=refit_table(data.refit_errors),
        settings=tables.flatten(data.settings),
        environment=[*data.machine.items(), *data.versions.items()],
    )


def readable_time(iso: str) -> str:
    """Write an ISO time for people, or leave a text that is none as it is."""
    try:
        time = datetime.fromisoformat(iso.replace("Z", "+00:00"))
    except ValueError:
        return iso
    return f"{time.day} {time:%B %Y, %H:%M %Z}".strip()
