"""Comparison of runs as one self-contained web page."""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap
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
    from collections.abc import Sequence

    from loraprune.report.comparison.result import ComparedModel, Cost, Quality, RunsComparison

_GOOD_FOR = {PARAMETERS: "size", LATENCY: "speed", SECONDS: "a short training time"}
"""Words for the purpose that the run with the lowest cost is best for."""


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
    """State in one sentence which run is the best choice for quality and for each cost."""
    runs = _finite_runs(group)
    if not runs:
        return f"No run has a finite {group.quality.label}."
    best = min(runs, key=lambda model: _badness(model, group))
    before = [model for model in group.models if model.number is None]
    own, dense = f"{group.quality.label} {result.quality_text(best.quality, group.quality)}", ""
    if len(before) == 1:
        dense = f"{before[0].what or 'before'}: {result.quality_text(before[0].quality, group.quality)}"
    if len(runs) == 1:
        return f"{best.name} has {own}{f' ({dense})' if dense else ''}."
    reasons = {best.name: [f"quality ({own}{f'; {dense}' if dense else ''})"]}
    for cost in group.costs:
        known = [model for model in runs if cost.name in model.costs]
        if len(known) > 1 and not cost.why_no_front:
            least = min(known, key=lambda model: (model.costs[cost.name], _badness(model, group)))
            figure = result.cost_text(least.costs[cost.name], cost)
            if cost.name == PARAMETERS:
                figure += " parameters"
            elif cost.relative:
                figure += " of the dense model's latency"
            reasons.setdefault(least.name, []).append(f"{_GOOD_FOR[cost.name]} ({figure})")
    at = {
        model.name: f", at {result.quality_text(model.quality, group.quality)}," for model in runs if model is not best
    }
    choices = [f"{name}{at.get(name, '')} for {_listed(why)}" for name, why in reasons.items()]
    return f"Take {_listed(choices, '; ')}."


def _badness(model: ComparedModel, group: RunGroup) -> float:
    """Quality as a figure of which less is better."""
    quality = model.quality or 0.0
    return -quality if group.quality.higher_is_better else quality


def _listed(texts: Sequence[str], between: str = ", ") -> str:
    """Join texts: ``a``, ``a and b``, ``a, b and c``."""
    *first, last = texts
    return f"{between.join(first)}{between.rstrip() if between == '; ' else ''} and {last}" if first else last


def _finite_runs(group: RunGroup) -> list[ComparedModel]:
    return [model for model in group.models if model.number is not None and numbers.is_number(model.quality)]


def _lead(group: RunGroup) -> str:
    detail = f"{capitalized(group.quality.detail)}; " if group.quality.detail else ""
    return f"{detail}{result.quality_direction(group.quality)}. " + (f"Made from {group.base}." if group.base else "")


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
        heading = f"{cost.label}, share of dense" if cost.relative else cost.label
        # Narrow columns leave room for the names of runs and methods.
        table.add_column("\n".join(wrap(heading.lower(), 10)), justify="right")
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
