"""Comparison of runs as one self-contained web page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from loraprune.record import atomic, numbers
from loraprune.report import page
from loraprune.report.comparison import result
from loraprune.report.comparison.figure import runs_figure
from loraprune.report.comparison.result import LATENCY, PARAMETERS, SECONDS, RunGroup
from loraprune.report.figure import capitalized
from loraprune.report.page import readable_time

if TYPE_CHECKING:
    from loraprune.report.comparison.result import ComparedModel, Cost, Quality, RunsComparison

_LEAST = {
    PARAMETERS: "Smallest: {name} with {figure} parameters.",
    LATENCY: "Fastest: {name} with {figure}.",
    SECONDS: "Quickest to make: {name} in {figure}.",
}


def check_page(path: Path) -> None:
    """Check that a page can be written under a name.

    Raises:
        ValueError: the name does not end in ``.html``.
    """
    if path.suffix != ".html":
        raise ValueError(f"The comparison is a web page, but {path} does not end in .html. Call it {path.name}.html.")


def write_page(comparison: RunsComparison, path: str | Path) -> None:
    """Write the page atomically.

    Raises:
        ValueError: ``path`` does not end in ``.html``.
    """
    check_page(Path(path))
    atomic.write_text(Path(path), render_page(comparison))


def render_page(comparison: RunsComparison) -> str:
    """Render the page; all text is escaped."""
    several = len(comparison.groups) > 1
    return page.render(
        "runs.html.j2",
        data=comparison,
        created=readable_time(comparison.created),
        groups=[
            {
                "group": group,
                "title": group.title if several else _heading(group.quality),
                "quality": _heading(group.quality),
                "lead": _lead(group),
                "verdict": comparison_verdict(group),
                "summary": _summary(group),
                "figure": runs_figure(group, "Quality against size, speed and training time"),
                "rows": _rows(group),
            }
            for group in comparison.groups
        ],
        legend=result.front_legend(comparison.groups),
        star=result.STAR,
    )


def _heading(quality: Quality) -> str:
    """Measure as a heading. Names of data and tasks at its start keep their spelling."""
    data = quality.name.partition(":")[0]
    return quality.label if quality.label.startswith(data) else capitalized(quality.label)


def comparison_verdict(group: RunGroup) -> str:
    """Name the best run, and compare it with its starting model."""
    runs = _finite_runs(group)
    if not runs:
        return f"No run has a finite {group.quality.label}."
    sign = -1 if group.quality.higher_is_better else 1
    best = min(runs, key=lambda model: sign * (model.quality or 0.0))
    before = [model for model in group.models if model.number is None]
    beside = ""
    if len(before) == 1:
        beside = f" ({before[0].what or 'before'}: {result.quality_text(before[0].quality, group.quality)})"
    text = result.quality_text(best.quality, group.quality)
    return f"Best {group.quality.label}: {best.name} with {text}{beside}."


def _summary(group: RunGroup) -> str:
    """Name the smallest and the fastest run, and the one made in the shortest time."""
    sentences = []
    for cost in group.costs:
        known = [model for model in _finite_runs(group) if cost.name in model.costs]
        if len(known) > 1 and not cost.why_no_front:
            least = min(known, key=lambda model: model.costs[cost.name])
            figure = result.cost_text(least.costs[cost.name], cost)
            figure += " of the dense model's latency" if cost.relative else ""
            sentences.append(_LEAST[cost.name].format(name=least.name, figure=figure))
    return " ".join(sentences)


def _finite_runs(group: RunGroup) -> list[ComparedModel]:
    return [model for model in group.models if model.number is not None and numbers.is_number(model.quality)]


def _lead(group: RunGroup) -> str:
    detail = f"{capitalized(group.quality.detail)}; " if group.quality.detail else ""
    return f"{detail}{result.quality_direction(group.quality)}. " + (f"Began with {group.base}." if group.base else "")


def _rows(group: RunGroup) -> list[dict[str, object]]:
    """Cells of the table: texts, each with a flag for models on a front."""
    rows: list[dict[str, object]] = []
    for model in group.models:
        costs = [
            {
                "head": cost.label,
                "text": result.cost_text(model.costs.get(cost.name), cost),
                "best": cost.name in model.best_for,
                "aside": _aside(model, cost, group),
            }
            for cost in group.costs
        ]
        rows.append(
            {
                "model": model,
                "what": result.model_kind(model),
                "quality": result.quality_text(model.quality, group.quality),
                "costs": costs,
                "size": numbers.file_size(model.bytes),
            }
        )
    return rows


def _aside(model: ComparedModel, cost: Cost, group: RunGroup) -> str:
    """Text below a cost: latency as a share of the starting model's, when both were timed alternately."""
    if cost.name != LATENCY or cost.relative or model.number is None or model.relative_latency is None:
        return ""
    before = [other for other in group.models if other.number is None]
    other = before[0].name if len(before) == 1 and before[0].what not in ("", "dense") else "dense"
    return f"{numbers.percent(model.relative_latency)} of {other}"


# A comparison of runs as a table for the terminal.


def runs_table(group: RunGroup) -> Table:
    """Build the table of a group: first the starting models, then the numbered runs."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("run", overflow="fold", ratio=1)
    table.add_column(group.quality.unit.value.replace("_", " "), justify="right")
    for cost in group.costs:
        table.add_column(
            f"{cost.label}, share of dense".lower() if cost.relative else cost.label.lower(), justify="right"
        )
    for model in group.models:
        name = Text(model.name)
        if what := result.model_kind(model):
            name.append(f"\n{what}", style="dim")
        cells = [Text(result.quality_text(model.quality, group.quality), style="bold")]
        for cost in group.costs:
            mark = f" {result.STAR}" if cost.name in model.best_for else "  "
            cells.append(Text(result.cost_text(model.costs.get(cost.name), cost) + mark, no_wrap=True))
        table.add_row("" if model.number is None else str(model.number), name, *cells)
    return table
