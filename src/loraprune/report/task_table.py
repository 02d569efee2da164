"""Scores of tasks as a table for the terminal: a column a model, changes against the first, averages at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from loraprune.record.numbers import MISSING, is_number, significant

if TYPE_CHECKING:
    from loraprune.measure.evaluation.results import Entry

_SHARES = ("acc", "exact_match", "em", "f1", "mcc")
"""Metrics that are shares of one, by what their names begin with; they are shown in percent."""

_CAPTION = "accuracies in %; ±: standard error"
_CHANGES = ", the largest of the models'; changes in points, against the first"

_AVERAGED = {
    "acc_norm": "average of acc_norm: acc where a task has none",
    "paper": "paper: acc_norm of HellaSwag, ARC-challenge and OpenBookQA, acc of the others; that the papers' tables "
    "take these is an assumption",
}

Column = tuple[str, Sequence["Entry"]]
"""A model's name as it is printed, and its entries of kind ``task``."""


def task_table(columns: Sequence[Column]) -> Table | None:
    """Build the table; None if no model has a score. Accuracies are percentages, changes points of them."""
    values = [{entry.name: entry.values for entry in entries if entry.kind == "task"} for _, entries in columns]
    names = list(dict.fromkeys(name for own in values for name in own))
    if not names:
        return None
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        header_style="bold",
        caption=_CAPTION + (_CHANGES if len(columns) > 1 else ""),
        caption_justify="left",
    )
    table.add_column("task", overflow="fold")
    table.add_column("metric", no_wrap=True)
    table.add_column("chance", justify="right", no_wrap=True)
    table.add_column("±", justify="right", no_wrap=True)
    for name, _ in columns:
        table.add_column(Text(name), justify="right", overflow="fold")
    for name in names:
        _add_task(table, name, [own.get(name, {}) for own in values])
    _add_averages(table, values)
    return table


def _add_task(table: Table, name: str, values: Sequence[Mapping[str, Any]]) -> None:
    """The rows of a task: its name, how it was asked, and a line a metric."""
    first = next(own for own in values if own)
    shots, items = first.get("num_fewshot"), first.get("num_items")
    facts = [f"{shots}-shot" if shots else "", f"{items:,} items" if items else ""]
    label = Text(name).append(f"\n{', '.join(filter(None, facts))}", style="dim")
    metrics = list(dict.fromkeys(metric for own in values for metric in _metrics(own)))
    for number, metric in enumerate(metrics):
        chance = first.get("chance") if metric.startswith("acc") else None
        errors = [own.get(f"{metric}_stderr") for own in values]
        error = max((error for error in errors if error is not None and is_number(error)), default=None)
        aside = [Text("" if figure is None else _number(metric, figure), style="dim") for figure in (chance, error)]
        cells = _cells(metric, [own.get(metric) for own in values])
        table.add_row(label if number == 0 else Text(), metric, *aside, *cells)
    if not metrics:
        table.add_row(label)


def _metrics(values: Mapping[str, Any]) -> Iterator[str]:
    """Names of figures that have a standard error beside them, or that are accuracies."""
    told = ("num_", "chance", "version", "group", "subtasks")
    for name in values:
        if not name.startswith(told) and "_stderr" not in name:
            yield name


def _cells(metric: str, values: Sequence[float | None]) -> list[Text]:
    """The figures of a row, each but the first with its change."""
    first = values[0]
    cells = []
    for number, value in enumerate(values):
        cell = Text(_number(metric, value))
        if number and value is not None and first is not None and is_number(value) and is_number(first):
            cell.append(f" {_change(metric, value - first)}", style="cyan")
        cells.append(cell)
    return cells


def _number(metric: str, value: float | None) -> str:
    if value is None or not is_number(value):
        return MISSING
    return f"{100 * value:.1f}" if metric.startswith(_SHARES) else significant(value)


def _change(metric: str, difference: float) -> str:
    digits = _number(metric, abs(difference))
    return ("\N{MINUS SIGN}" if difference < 0 and float(digits) else "+") + digits


def _add_averages(table: Table, values: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
    """Means over the tasks that every model has."""
    from loraprune.metrics.tasks import averages

    common = [name for name in values[0] if all(name in own for own in values)]
    by_model = [averages({name: own[name] for name in common}) for own in values]
    for number, means in enumerate(zip(*by_model, strict=True)):
        if number == 0:
            table.add_section()
        label = Text(means[0].tasks if number == 0 else "", style="bold")
        table.add_row(label, means[0].metric, "", "", *_cells("acc", [mean.value for mean in means]))
        if means[0].metric in _AVERAGED:
            table.caption = f"{table.caption}; {_AVERAGED[means[0].metric]}"


def task_notes(columns: Sequence[Column]) -> list[str]:
    """What to know of the scores: requests that were cut, likelihoods that were NaN."""
    notes = []
    for model, entries in columns:
        scores = [(entry.name, entry.values) for entry in entries if entry.kind == "task"]
        cut = [_share(name, own, "num_truncated") for name, own in scores if own.get("num_truncated")]
        if cut:
            notes.append(f"{model}: requests longer than its context lost their beginning: {', '.join(cut)}.")
        lost = [_share(name, own, "num_not_finite") for name, own in scores if own.get("num_not_finite")]
        if lost:
            notes.append(
                f"{model}: log-likelihoods are NaN, so that there are no scores: {', '.join(lost)}. "
                "Try --dtype float32."
            )
    return notes


def _share(name: str, values: Mapping[str, Any], count: str) -> str:
    return f"{name} {values[count]:,} of {values['num_requests']:,}"
