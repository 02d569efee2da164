"""Evaluation results for the terminal: one column per model, each compared with the first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from loraprune.record.numbers import MULTIPLICATION_SIGN, is_number, no_number, significant
from loraprune.report.before_after import WHY_NAN
from loraprune.report.evaluation_rows import figure_in, figure_of

if TYPE_CHECKING:
    from rich.console import Console

    from loraprune.measure.evaluation.results import Entry

DIGITS = 4
MINUS = "\N{MINUS SIGN}"

ByModel = Mapping[str, "Entry"]
"""Entries of one measure by the model's name."""


def show_entries(console: Console, entries: Sequence[Entry]) -> None:
    """Print all results: figures, task scores, then completions."""
    models = list(dict.fromkeys(entry.model for entry in entries))
    names = dict(zip(models, short_names(models), strict=True))
    columns = [(names[model], [entry for entry in entries if entry.model == model]) for model in models]
    rows = _by_label([entry for entry in entries if entry.kind in FURTHER])
    if rows:
        console.print(_figures_table(rows, names))
    scores = task_table(columns)
    if scores is not None:
        console.print(scores)
    show_completions(console, columns)
    notes = task_notes(columns)
    notes += _chat_notes(entries)
    if any(_tokenizers_differ(row) for row in rows.values()):
        notes.append("The models tokenize text differently: compare perplexity per word or bits per byte.")
    for note in notes:
        console.print(Text(note, style="yellow"))


def _chat_notes(entries: Sequence[Entry]) -> list[str]:
    """State that chat templates wrote the prompts, and with which system prompt."""
    systems = {entry.settings.get("system_prompt") for entry in entries if entry.settings.get("chat_template")}
    return [
        "Tasks and prompts used the model's chat template"
        + ("." if system is None else f", with this system prompt: {system}")
        for system in sorted(systems, key=str)
    ]


def short_names(models: Sequence[str]) -> list[str]:
    """Shorten paths and Hub names to the endings that distinguish them."""
    parts = [PurePath(model).parts or (model,) for model in models]
    # The folder of `--save-adapter` is always called adapter, so its parent is part of the name.
    lengths = [2 if part[-1] == "adapter" else 1 for part in parts]
    for further in range(max(map(len, parts), default=1)):
        names = ["/".join(part[-length - further :]) for part, length in zip(parts, lengths, strict=True)]
        if len(set(names)) == len(set(models)):
            return names
    return list(models)


def _by_label(entries: Sequence[Entry]) -> dict[tuple[str, str], dict[str, Entry]]:
    found: dict[tuple[str, str], dict[str, Entry]] = {}
    for entry in entries:
        found.setdefault((entry.kind, entry.label), {})[entry.model] = entry
    return found


def _figures_table(rows: Mapping[tuple[str, str], ByModel], names: Mapping[str, str]) -> Table:
    """Return the table of perplexities, accuracies and losses.

    Args:
        rows: entries by kind and label, then by model.
        names: display names of the models, in order.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("", overflow="fold")
    for name in names.values():
        table.add_column(Text(name), justify="right", overflow="fold")
    parameters = {entry.model: entry.parameters for row in rows.values() for entry in row.values()}
    counts = [parameters.get(model) for model in names]
    table.add_row("parameters", *(_compared(counts, lambda value: f"{value:,.0f}")))
    for (kind, label), row in rows.items():
        entries = [row.get(model) for model in names]
        table.add_row(_heading(label, row), *(_cells(kind, entries, _tokenizers_differ(row))))
        for name, key in FURTHER[kind].items():
            table.add_row(f"  {name}", *_compared(_figures(entries, key), _number))
    return table


FURTHER: dict[str, dict[str, str]] = {
    "perplexity": {"per word": "word_perplexity", "bits per byte": "bits_per_byte"},
    "accuracy": {"loss": "loss"},
    "targets": {"perplexity": "perplexity", "loss": "loss"},
}
"""Rows under the first row of a measure, by its kind."""


def _heading(label: str, row: ByModel) -> Text:
    """Return the name, and the measured amount if it is the same for all models."""
    text = Text(label)
    details = {_detail(entry.values) for entry in row.values()}
    if len(details) == 1:
        text.append(f"\n{details.pop()}", style="dim")
    return text


def _detail(values: Mapping[str, Any]) -> str:
    if "num_segments" in values:
        return f"perplexity, {values['num_tokens']:,} tokens in {values['num_segments']:,} segments"
    if "num_generated" in values:
        return f"exact match, {values['num_generated']:,} targets"
    return f"accuracy, {values.get('num_examples', 0):,} examples"


def _tokenizers_differ(row: ByModel) -> bool:
    """Whether models tokenized a text differently: their scored tokens differ in number or cover different text."""
    return len({tuple(map(entry.values.get, ("num_tokens", "num_bytes"))) for entry in row.values()}) > 1


def _cells(kind: str, entries: Sequence[Entry | None], incomparable: bool) -> list[str]:
    if kind == "perplexity":
        values = _figures(entries, "perplexity")
        return [_number(value) for value in values] if incomparable else _compared(values, _number)
    return _in_points(_figures(entries, "exact_match" if kind == "targets" else "accuracy"))


def _figures(entries: Sequence[Entry | None], key: str) -> list[float | None]:
    return [figure_of(entry, key) for entry in entries]


def _number(value: float | None) -> str:
    return significant(value, DIGITS)


def _compared(values: Sequence[float | None], written: Any) -> list[str]:
    """Return each value, from the second on with its ratio to the first."""
    first = values[0] if values else None
    cells = []
    for position, value in enumerate(values):
        cell = significant(None) if value is None else written(value)
        if position and is_number(first) and is_number(value) and first:
            assert value is not None
            cell += f"  {MULTIPLICATION_SIGN}{significant(value / first)}"
        cells.append(cell)
    return cells


def _in_points(values: Sequence[float | None]) -> list[str]:
    """Return each share in percent, from the second on with its difference from the first in percentage points."""
    first = values[0] if values else None
    cells = []
    for position, value in enumerate(values):
        if value is None or not is_number(value):
            cells.append(no_number(value))
            continue
        cell = f"{100 * value:.1f} %"
        if position and is_number(first):
            assert first is not None
            change = 100 * (value - first)
            cell += f"  {MINUS if change < 0 else '+'}{abs(change):.1f}"
        cells.append(cell)
    return cells


# Completions of the same prompts by several models: side by side if they fit, else one below the other.

_LEAST_WIDTH = 32
"""Minimum columns of the terminal for a readable completion beside another."""


def show_completions(console: Console, columns: Sequence[tuple[str, Sequence[Entry]]]) -> None:
    """Print every prompt and each model's completion.

    Args:
        console: console to print on.
        columns: for each model, its display name and its entries; only entries of kind ``completions`` are shown.
    """
    texts = [(name, _by_prompt(entries)) for name, entries in columns]
    for prompt in dict.fromkeys(prompt for _, own in texts for prompt in own):
        console.print(Text(printable(prompt), style="bold"))
        shown = [(name, printable(own[prompt]).strip("\n")) for name, own in texts if prompt in own]
        if len(shown) > 1 and console.width // len(shown) >= _LEAST_WIDTH:
            console.print(_side_by_side(shown))
            continue
        for name, completion in shown:
            console.print(Text(f"  {name}", style="dim"))
            console.print(Padding(Text(completion), (0, 0, 0, 4)))
        console.print()


def _by_prompt(entries: Sequence[Entry]) -> Mapping[str, str]:
    return {
        item["prompt"]: item["completion"]
        for entry in entries
        if entry.kind == "completions"
        for item in entry.values.get("completions", ())
    }


def _side_by_side(shown: Sequence[tuple[str, str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", expand=True)
    for name, _ in shown:
        table.add_column(Text(name), ratio=1, overflow="fold")
    table.add_row(*(Text(completion) for _, completion in shown))
    return table


def printable(text: str) -> str:
    """Remove terminal control characters, which a model may generate."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


# Task scores as a table for the terminal: one column per model, changes from the first, averages at the end.

_SHARES = ("acc", "exact_match", "em", "f1", "mcc")
"""Prefixes of the names of metrics that are shares of one and are shown in percent."""

_CAPTION = "accuracies in %; ±: standard error"
_CHANGES = ", the largest of all models; changes in points from the first model"

_AVERAGED = {
    "acc_norm": "average of acc_norm: acc if a task has none",
    "paper": "paper: acc_norm of HellaSwag, ARC-challenge and OpenBookQA, acc of the others; we assume that the "
    "papers' tables use these",
}

Column = tuple[str, Sequence["Entry"]]
"""Display name of a model, and its entries of kind ``task``."""


def task_table(columns: Sequence[Column]) -> Table | None:
    """Build the table; None if no model has a score. Accuracies are percentages, and changes are percentage points."""
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
    """Add the rows of a task: its name, the form of its prompts, and a line per metric."""
    first = next(own for own in values if own)
    shots, items = first.get("num_fewshot"), first.get("num_items")
    facts = [f"{shots}-shot" if shots else "", f"{items:,} items" if items else ""]
    label = Text(name).append(f"\n{', '.join(filter(None, facts))}", style="dim")
    metrics = list(dict.fromkeys(metric for own in values for metric in _metrics(own)))
    for number, metric in enumerate(metrics):
        chance = first.get("chance") if metric.startswith("acc") else None
        errors = [own.get(f"{metric}_stderr") for own in values]
        error = max((error for error in errors if error is not None and is_number(error)), default=None)
        aside = [
            Text("" if figure is None else _task_number(metric, figure), style="dim") for figure in (chance, error)
        ]
        cells = _task_cells(metric, [figure_in(own, metric) for own in values])
        table.add_row(label if number == 0 else Text(), metric, *aside, *cells)
    if not metrics:
        table.add_row(label)


def _metrics(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the task's scores, without their standard errors and other values."""
    aside = ("num_", "chance", "version", "group", "subtasks")
    for name in values:
        if not name.startswith(aside) and "_stderr" not in name:
            yield name


def _task_cells(metric: str, values: Sequence[float | None]) -> list[Text]:
    """Return the figures of a row, all but the first with their change."""
    first = values[0]
    cells = []
    for number, value in enumerate(values):
        cell = Text(_task_number(metric, value))
        if number and value is not None and first is not None and is_number(value) and is_number(first):
            cell.append(f" {_change(metric, value - first)}", style="cyan")
        cells.append(cell)
    return cells


def _task_number(metric: str, value: float | None) -> str:
    if value is None or not is_number(value):
        return no_number(value)
    return f"{100 * value:.1f}" if metric.startswith(_SHARES) else significant(value)


def _change(metric: str, difference: float) -> str:
    digits = _task_number(metric, abs(difference))
    return ("\N{MINUS SIGN}" if difference < 0 and float(digits) else "+") + digits


def _add_averages(table: Table, values: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
    """Add the means over the tasks that every model has."""
    from loraprune.metrics.tasks import averages

    common = [name for name in values[0] if all(name in own for own in values)]
    by_model = [averages({name: own[name] for name in common}) for own in values]
    for number, means in enumerate(zip(*by_model, strict=True)):
        if number == 0:
            table.add_section()
        label = Text(means[0].tasks if number == 0 else "", style="bold")
        table.add_row(label, means[0].metric, "", "", *_task_cells("acc", [mean.value for mean in means]))
        if means[0].metric in _AVERAGED:
            table.caption = f"{table.caption}; {_AVERAGED[means[0].metric]}"


def task_notes(columns: Sequence[Column]) -> list[str]:
    """Return remarks on the scores: truncated requests, tied choices, and likelihoods that were NaN."""
    notes = []
    for model, entries in columns:
        scores = [(entry.name, entry.values) for entry in entries if entry.kind == "task"]
        cut = [_share(name, own, "num_truncated") for name, own in scores if own.get("num_truncated")]
        if cut:
            notes.append(f"{model}: requests longer than its context lost their beginning: {', '.join(cut)}.")
        tied = [_share(name, own, "num_tied", "num_items") for name, own in scores if own.get("num_tied")]
        if tied:
            notes.append(f"{model}: several choices are equally likely, and the first one counts: {', '.join(tied)}.")
        lost = [_share(name, own, "num_not_finite") for name, own in scores if own.get("num_not_finite")]
        if lost:
            notes.append(
                f"{model}: log-likelihoods are NaN, so there are no scores: {', '.join(lost)}. Try --dtype float32."
            )
        figures = [entry for entry in entries if entry.kind in FURTHER and "perplexity" in entry.values]
        nan = [entry.name for entry in figures if math.isnan(figure_of(entry, "perplexity") or 0.0)]
        if nan:
            notes.append(f"{model}: perplexity is not a number: {', '.join(nan)}. {WHY_NAN} Try --dtype float32.")
    return notes


def _share(name: str, values: Mapping[str, Any], count: str, total: str = "num_requests") -> str:
    return f"{name} {values[count]:,} of {values[total]:,}"
