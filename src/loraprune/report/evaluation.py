"""Results of evaluations for the terminal: a column a model, each compared with the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from loraprune.record.numbers import MULTIPLICATION_SIGN, is_number, significant
from loraprune.report.completions_table import show_completions
from loraprune.report.task_table import task_notes, task_table

if TYPE_CHECKING:
    from rich.console import Console

    from loraprune.measure.evaluation.results import Entry

DIGITS = 4
MINUS = "\N{MINUS SIGN}"

ByModel = Mapping[str, "Entry"]
"""Entries of one measure by the model's name."""


def show_entries(console: Console, entries: Sequence[Entry]) -> None:
    """Print everything that was measured: figures, scores of tasks, then completions."""
    models = list(dict.fromkeys(entry.model for entry in entries))
    names = dict(zip(models, short_names(models), strict=True))
    columns = [(names[model], [entry for entry in entries if entry.model == model]) for model in models]
    rows = _by_label([entry for entry in entries if entry.kind in FURTHER])
    if rows:
        console.print(figures_table(rows, names))
    scores = task_table(columns)
    if scores is not None:
        console.print(scores)
    show_completions(console, columns)
    notes = task_notes(columns)
    if any(_tokenizers_differ(row) for row in rows.values()):
        notes.append("The models cut text into different tokens: compare them per word or by bits per byte.")
    for note in notes:
        console.print(Text(note, style="yellow"))


def short_names(models: Sequence[str]) -> list[str]:
    """The ends of paths and hub names, as long as it takes to tell them apart."""
    parts = [PurePath(model).parts or (model,) for model in models]
    # What `--save-adapter` wrote goes by the folder that it is in.
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


def figures_table(rows: Mapping[tuple[str, str], ByModel], names: Mapping[str, str]) -> Table:
    """The table of perplexities, accuracies and losses.

    Args:
        rows: entries by kind and label, then by model.
        names: what models are called, in their order.
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
"""Rows under the first one of a measure, by its kind."""


def _heading(label: str, row: ByModel) -> Text:
    """Name, and how much was measured where that is the same for all models."""
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
    """Whether models saw a text as other tokens: what they scored differs in number, or stands for other text."""
    return len({tuple(map(entry.values.get, ("num_tokens", "num_bytes"))) for entry in row.values()}) > 1


def _cells(kind: str, entries: Sequence[Entry | None], incomparable: bool) -> list[str]:
    if kind == "perplexity":
        values = _figures(entries, "perplexity")
        return [_number(value) for value in values] if incomparable else _compared(values, _number)
    return _in_points(_figures(entries, "exact_match" if kind == "targets" else "accuracy"))


def _figures(entries: Sequence[Entry | None], key: str) -> list[float | None]:
    return [None if entry is None else entry.values.get(key) for entry in entries]


def _number(value: float | None) -> str:
    return significant(value, DIGITS)


def _compared(values: Sequence[float | None], written: Any) -> list[str]:
    """Each value, and from the second on its ratio to the first."""
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
    """Each share in percent, and from the second on its distance from the first in points."""
    first = values[0] if values else None
    cells = []
    for position, value in enumerate(values):
        if value is None or not is_number(value):
            cells.append(significant(None))
            continue
        cell = f"{100 * value:.1f} %"
        if position and first is not None:
            change = 100 * (value - first)
            cell += f"  {MINUS if change < 0 else '+'}{abs(change):.1f}"
        cells.append(cell)
    return cells
