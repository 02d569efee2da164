"""Results of ``loraprune eval`` as rows of a report: perplexities and accuracies, scores of tasks, completions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from loraprune.measure.evaluation.results import Entry
from loraprune.recipes.run_entries import RunEntries
from loraprune.record.report_data import Completion, ReportData, Row, Unit

METRICS = ("acc_norm", "acc", "exact_match", "f1")
"""Metrics of tasks that are shares of one; of a task the first that it has."""


def with_entries(data: ReportData, entries: RunEntries) -> ReportData:
    """The data of a report with results; those that it had of the same thing give way."""
    pairs, rows = list(entries.pairs()), rows_of(entries)
    scores = [row for pair in pairs for row in _score(*pair)]
    completions = [text for pair in pairs for text in _completions(*pair)]
    prompts = {text.prompt for text in completions}
    return replace(
        data,
        rows=_merged(data.rows, rows),
        scores=_with_average(_merged(_tasks(data.scores), scores), entries),
        completions=(*(text for text in data.completions if text.prompt not in prompts), *completions),
    )


def rows_of(entries: RunEntries) -> list[Row]:
    """Rows of perplexities and accuracies; scores of tasks are none of these."""
    return [row for pair in entries.pairs() for row in _rows(*pair)]


def _merged(old: Sequence[Row], new: Sequence[Row]) -> tuple[Row, ...]:
    """Old rows and new ones; a new row stands where an old one of the same name stood."""
    labels = {row.label for row in new}
    return (*(row for row in old if row.label not in labels), *new)


def _value(entry: Entry | None, key: str) -> float | None:
    value = None if entry is None else entry.values.get(key)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _perplexity(values: Mapping[str, Any]) -> str:
    return f"perplexity, {values.get('num_tokens', 0):,} tokens"


def _accuracy(values: Mapping[str, Any]) -> str:
    return f"accuracy, {values.get('num_examples', 0):,} examples"


def _matches(values: Mapping[str, Any]) -> str:
    return f"exact match, {values.get('num_generated', 0):,} targets"


_KINDS: dict[str, tuple[str, Unit, Callable[[Mapping[str, Any]], str]]] = {
    "perplexity": ("perplexity", Unit.PERPLEXITY, _perplexity),
    "accuracy": ("accuracy", Unit.ACCURACY, _accuracy),
    "targets": ("exact_match", Unit.ACCURACY, _matches),
}
"""Of a kind of result the figure that is shown, its unit, and how it was measured."""


def _rows(dense: Entry | None, pruned: Entry | None) -> Iterable[Row]:
    either = pruned or dense
    assert either is not None
    if either.kind in _KINDS:
        key, unit, detail = _KINDS[either.kind]
        dtype = f", {either.settings['dtype']}" if "dtype" in either.settings else ""
        yield Row(
            label=either.label,
            unit=unit,
            detail=detail(either.values) + dtype,
            dense=_value(dense, key),
            pruned=_value(pruned, key),
        )


def _metric(entry: Entry) -> str | None:
    return next((metric for metric in METRICS if metric in entry.values), None)


def _score(dense: Entry | None, pruned: Entry | None) -> Iterable[Row]:
    either = pruned or dense
    assert either is not None
    metric = _metric(either) if either.kind == "task" else None
    if metric is None:
        return
    shots, items = either.values.get("num_fewshot"), either.values.get("num_items")
    parts = [metric, f"{shots} shots" if shots else "", f"{items:,} items" if items else ""]
    yield Row(
        label=either.name,
        unit=Unit.ACCURACY,
        detail=", ".join(filter(None, parts)),
        dense=_value(dense, metric),
        pruned=_value(pruned, metric),
    )


_AVERAGE = "average of"


def _tasks(scores: Sequence[Row]) -> tuple[Row, ...]:
    """Scores of tasks without the averages over them."""
    return tuple(row for row in scores if not row.label.startswith(_AVERAGE))


def _with_average(scores: tuple[Row, ...], entries: RunEntries) -> tuple[Row, ...]:
    """The scores, and below them the averages over the tasks that both models were measured on."""
    from loraprune.metrics.tasks.scores import averages

    both = [(d, p) for d, p in entries.pairs() if d is not None and p is not None and p.kind == "task"]
    dense, pruned = averages({d.name: d.values for d, _ in both}), averages({p.name: p.values for _, p in both})
    return (
        *scores,
        *(
            Row(
                label=f"{of_pruned.tasks}, {of_pruned.metric}",
                unit=Unit.ACCURACY,
                detail=", ".join(of_pruned.metrics),
                dense=of_dense.value,
                pruned=of_pruned.value,
            )
            for of_dense, of_pruned in zip(dense, pruned, strict=False)
            if of_dense.metric == of_pruned.metric
        ),
    )


def _completions(dense: Entry | None, pruned: Entry | None) -> Iterable[Completion]:
    """Texts of both models side by side; nothing where only one of them wrote."""
    if dense is None or pruned is None or pruned.kind != "completions":
        return
    texts = {text["prompt"]: text["completion"] for text in dense.values["completions"]}
    for text in pruned.values["completions"]:
        if text["prompt"] in texts:
            yield Completion(prompt=text["prompt"], dense=texts[text["prompt"]], pruned=text["completion"])
