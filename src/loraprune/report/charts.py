"""The pictures of a report, in the order and under the headings in which a reader asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraprune.report.figures.cut import map_figure
from loraprune.report.figures.layers_figure import layers_figure
from loraprune.report.figures.phases_figure import phases_figure
from loraprune.report.figures.refit_figure import refit_figure
from loraprune.report.figures.run import training_figure
from loraprune.report.figures.scores import importance_figure
from loraprune.report.figures.stability_figure import stability_figure

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loraprune.record.report_data import LayerWidth, ReportData
    from loraprune.report.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Section:
    """Pictures under one heading."""

    title: str
    figures: tuple[Figure, ...]


def sections(data: ReportData) -> list[Section]:
    """Draw all pictures that there is data for, of each kind of group one."""
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
    """Maps where layers have more than one group, plain widths of other kinds, and what the last cuts did."""
    mapped = dict.fromkeys(item.kind for item in data.maps if len(item.kept) > 1)
    widths: dict[str, list[LayerWidth]] = {}
    for item in data.layers:
        widths.setdefault(item.kind, []).append(item)
    for kind in mapped:
        yield map_figure([item for item in data.maps if item.kind == kind], widths.get(kind, ()))
    for kind, items in widths.items():
        if kind not in mapped:
            yield layers_figure(items)
    # In the order of the pictures above, not in that in which kinds were first cut.
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
