"""A comparison of runs as a table for the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from loraprune.report.comparison import runs_words
from loraprune.report.comparison.result import RunGroup


def runs_table(group: RunGroup) -> Table:
    """Build the table of a group: the models that runs began with, then the runs under their numbers."""
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
        if what := runs_words.kind_of(model):
            name.append(f"\n{what}", style="dim")
        cells = [Text(runs_words.quality_text(model.quality, group.quality), style="bold")]
        for cost in group.costs:
            mark = f" {runs_words.STAR}" if cost.name in model.best_for else "  "
            cells.append(Text(runs_words.cost_text(model.costs.get(cost.name), cost) + mark, no_wrap=True))
        table.add_row("" if model.number is None else str(model.number), name, *cells)
    return table
