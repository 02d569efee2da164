"""Self-contained web pages, and the report of a run as one of them."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from loraprune.record import atomic
from loraprune.record.places import check_kind
from loraprune.report import before_after, tables
from loraprune.report.figures.group_map import map_figure
from loraprune.report.figures.importance import importance_figure
from loraprune.report.figures.phases import phases_figure
from loraprune.report.figures.repair import refit_figure, refit_table
from loraprune.report.figures.stability import stability_figure
from loraprune.report.figures.task_scores import scores_figure
from loraprune.report.figures.training import training_figure
from loraprune.report.figures.widths import layers_figure
from loraprune.report.headline import tiles, verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loraprune.record.report_data import LayerWidth, ReportData
    from loraprune.report.figure import Figure


def render(template: str, **values: object) -> str:
    """Render a template that extends ``page.html.j2``. All text except ``Markup`` is escaped.

    The page's security policy allows only its own script, identified by its hash, and loads nothing.

    Args:
        template: name of a file in this folder.
        values: values of the template.
    """
    script = Markup(_source("hover.js.j2"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _environment().get_template(template).render(script=script, script_hash=f"sha256-{digest}", **values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["markup"] = Markup
    return environment


def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


# The figures of a report, in the order of the reader's questions.


@dataclass(frozen=True, kw_only=True)
class Section:
    """Figures under one heading."""

    title: str
    figures: tuple[Figure, ...]


def sections(data: ReportData) -> list[Section]:
    """Draw all figures that there is data for, one for each kind of group."""
    parts = (
        ("The run", [*_run(data)]),
        ("What was cut", [*_cut(data)]),
        ("How it was chosen", [*_chosen(data)]),
    )
    return [Section(title=title, figures=tuple(figures)) for title, figures in parts if figures]


def _run(data: ReportData) -> Iterable[Figure]:
    if data.history:
        yield training_figure(data)
    phases = phases_figure(data.phases)
    if phases is not None:
        yield phases


def _cut(data: ReportData) -> Iterable[Figure]:
    """Draw maps for layers with several groups, plain widths for other kinds, and the effects of the last cuts."""
    mapped = dict.fromkeys(item.kind for item in data.maps if len(item.kept) > 1)
    widths: dict[str, list[LayerWidth]] = {}
    for item in data.layers:
        widths.setdefault(item.kind, []).append(item)
    for kind in mapped:
        yield map_figure([item for item in data.maps if item.kind == kind], widths.get(kind, ()))
    for kind, items in widths.items():
        if kind not in mapped:
            yield layers_figure(items)
    # In the order of the figures above, not of the first cut of each kind.
    for kind in dict.fromkeys([*widths, *(item.kind for item in data.refit_errors)]):
        errors = [item for item in data.refit_errors if item.kind == kind]
        if errors:
            yield refit_figure(errors)


def _chosen(data: ReportData) -> Iterable[Figure]:
    for kind in dict.fromkeys(item.kind for item in data.importance.values()):
        yield importance_figure([item for item in data.importance.values() if item.kind == kind])
    stability = stability_figure(data.cuts)
    if stability is not None:
        yield stability


# The report as one web page that needs nothing but itself.


HEAD_OF_PAGES = b'<meta name="color-scheme" content="light dark">'
"""Context of every page."""


def write_report(data: ReportData, path: str | Path) -> None:
    """Write the page to ``path`` and the data as JSON beside it, under the same name with ``.json``.

    Each file is written atomically, the page last.

    Raises:
        OutputExistsError: ``path`` exists and is not a file.
        ValueError: ``path`` does not end in ``.html``.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise ValueError(f"A report is a web page, but {path} does not end in .html. Call it {path.name}.html.")
    check_kind(path)
    text = render_report(data)
    data.to_json(path.with_suffix(".json"))
    atomic.write_text(path, text)


def render_report(data: ReportData) -> str:
    """Render the page; all text of the data is escaped."""
    sparse = data.headline.sparsity is not None
    return render(
        "report.html.j2",
        data=data,
        created=readable_time(data.created),
        verdict=verdict(data),
        summary=before_after.summary(data),
        tiles=tiles(data),
        rows=before_after.format_rows(data),
        unrecovered=before_after.has_unrecovered(data),
        sections=sections(data),
        is_code=is_code,
        scores=[before_after.format_row(row) for row in data.scores],
        scores_figure=scores_figure(data.scores, data.before, data.after) if data.scores else None,
        widths=tables.width_grid(data.layers),
        cuts=tables.cut_grid(data.cuts, "zero" if sparse else "removed"),
        refits=refit_table(data.refit_errors),
        settings=tables.flatten(data.settings),
        environment=[*data.machine.items(), *data.versions.items()],
    )


_CODE = re.compile(
    r"^( {4}|\t|#include|#!/|(async )?def \w+\(|class \w+[(:{]|from [\w.]+ import |import [\w.]+;?$|.*\) ?\{$)",
    re.MULTILINE,
)


def is_code(prompt: str) -> bool:
    """Tell whether a prompt is source code, whose completions need a fixed-width font and their indentation."""
    return _CODE.search(prompt) is not None


def readable_time(iso: str) -> str:
    """Format an ISO time for people. Other text stays unchanged."""
    try:
        time = datetime.fromisoformat(iso.replace("Z", "+00:00"))
    except ValueError:
        return iso
    return f"{time.day} {time:%B %Y, %H:%M %Z}".strip()
