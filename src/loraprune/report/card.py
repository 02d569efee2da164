"""Model cards of pruned, sparse and tuned checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from loraprune.importance.configs import Compresso
from loraprune.report.card_metadata import card_metadata
from loraprune.report.from_record import shown_measures, task_of
from loraprune.structure.dimensions import Structure
from loraprune.tasks.task import CARD_FORMATS, Measure

if TYPE_CHECKING:
    from loraprune.record.pruning_course import PruningCourse
    from loraprune.record.report_data import Row
from loraprune.record.run_record import RunMetrics, RunRecord

_GROUPS = {
    "heads": "attention heads",
    "query_heads": "query heads",
    "channels": "FFN channels",
    "expert_channels": "channels of experts",
    "experts": "experts",
    "blocks": "whole blocks",
    "hidden": "channels of the hidden size",
}
"""Names of the kinds of prunable dimensions; other kinds keep their own names."""

_REPAIRS = {True: "refit", False: "none"}
"""Descriptions of a repair in records, by the first name of the option."""


def _row(metrics: RunMetrics, measure: Measure) -> str:
    before, after = measure.of(metrics.dense), measure.of(metrics.pruned)
    if before is None or after is None or measure.card is None:
        return ""
    form = CARD_FORMATS[measure.unit]
    return f"| {measure.card(metrics.pruned)} | {before:{form}} | {after:{form}} |\n"


def _widths(kind: str, counts: Sequence[int], structure: Structure) -> str:
    name = "KV heads" if kind == "heads" and structure.query_heads_per_group > 1 else kind.replace("_", " ")
    low, high = min(counts), max(counts)
    return f"{low} {name}" if low == high else f"{low} to {high} {name}"


def _all_widths(widths: Mapping[str, Sequence[int]], structure: Structure) -> str:
    """Return a sentence about what every layer has."""
    if structure.spans_blocks and widths:
        (dimension,) = structure
        return f"{widths[dimension.kind][0]} of {dimension.num_groups} {_GROUPS[dimension.kind]} are kept."
    kept = ", ".join(_widths(kind, counts, structure) for kind, counts in widths.items())
    return f"Every layer has {kept}." if kept else "Nothing was pruned."


@dataclass(frozen=True, kw_only=True)
class _Words:
    """Texts that depend on the recipe.

    Attributes:
        title: text after the model's name in the heading.
        what: sentences on what the run did; ``facts``: on how much.
        tag: tag for the Hub.
        before: heading for the model before the run; ``after``: heading for the result.
        recorded: content of the record besides settings, versions, seed and measures.
        command: command that accepts the recipe.
    """

    title: str
    what: str
    facts: str
    tag: str = "pruned"
    before: str = "dense"
    after: str = "pruned"
    recorded: str = "the groups that were kept"
    command: str = "prune"


def _base_name(record: RunRecord) -> str:
    """Last part of the base model's name, which readers know."""
    return record.base_model.rstrip("/").rpartition("/")[2]


def card_of(
    record: RunRecord,
    structure: Structure,
    runtimes: Sequence[str],
    *,
    data: str | None = None,
    revision: str | None = None,
) -> str:
    """Write the card of a run.

    Args:
        record: record of the run.
        structure: structure of the model before the run.
        runtimes: runtimes that load the result, and how.
        data: name of a Hub dataset that the run read.
        revision: revision of the base on the Hub.
    """
    task, words = task_of(record), _words(record, structure)
    rows = "".join(_row(record.metrics, measure) for measure in shown_measures(task.measures, record.metrics))
    command = f"```\n{record.command}\n```\n\n" if record.command else ""
    recipe = yaml.safe_dump(dict(record.recipe), sort_keys=False, allow_unicode=True, width=100)
    return f"""{card_metadata(record, [words.tag], data=data, revision=revision)}# {_base_name(record)}, {words.title}

{words.what} {_loading(task.auto_class, runtimes)}

| | {words.before} | {words.after} |
|---|---|---|
{rows}
{words.facts}

## How it was made
{command}As a recipe: save this as `recipe.yaml` and run
`loraprune {words.command} MODEL --data DATA --config recipe.yaml -o OUT`.

```yaml
{recipe}```

Made with loraprune {record.versions.get("loraprune", "")}. `pruning.json` holds every setting, version, seed and
measure, and {words.recorded}. The license is that of the base model.
"""


def _words(record: RunRecord, structure: Structure) -> _Words:
    settings, pruning = record.settings, record.metrics.pruning
    if settings.recovery is not None:
        return _of_recovery(record, keeps_zeros=settings.recovery["keep_zeros"])
    if settings.oneshot is not None:
        return _of_oneshot(record, settings.oneshot, structure)
    assert settings.pruning is not None
    return _of_pst(record) if pruning is None else _of_joint(record, pruning, settings.pruning, structure)


def _removed_shares(pruning: PruningCourse) -> str:
    """State the removed share, counted both ways."""
    return (
        f"Removed: {pruning.ratio:.2%} of the prunable parameters (target "
        f"{pruning.target_ratio:.2%}),\n{1 - pruning.parameters / pruning.parameters_before:.2%} of all parameters."
    )


def _removed_in_words(pruning: PruningCourse) -> str:
    return f"{100 * pruning.ratio:.0f} % of the prunable parameters removed"


def _removed_kinds(structure: Structure, widths: Mapping[str, Sequence[int]]) -> str:
    """Describe what was removed: the kinds of which a layer keeps fewer than the model had."""
    had = {kind: [dimension.num_groups for dimension in structure.of_kind(kind)] for kind in structure.kinds}
    removed = [kind for kind in structure.kinds if list(widths.get(kind, ())) != had[kind]]
    return " and ".join(_GROUPS.get(kind, kind.replace("_", " ")) for kind in removed or structure.kinds)


def _loading(auto_class: str, runtimes: Sequence[str]) -> str:
    listed = "\n".join(f"- {runtime}" for runtime in runtimes)
    return f"Load it with `{auto_class}.from_pretrained`.\nRuntimes:\n\n{listed}"


def _of_joint(record: RunRecord, pruning: PruningCourse, settings: Mapping[str, Any], structure: Structure) -> _Words:
    """A run that removes groups during LoRA tuning."""
    widths = pruning.cuts[-1].widths if pruning.cuts else {}
    return _Words(
        title=_removed_in_words(pruning),
        what=(
            f"A structurally pruned copy of `{_base_name(record)}`: {_removed_kinds(structure, widths)} were removed\n"
            f"while LoRA tuned the model, and the adapter is merged. {_all_widths(widths, structure)}"
        ),
        facts=(
            f"{_removed_shares(pruning)} Criterion `{settings['criterion']}`,\nallocation `{settings['allocation']}`, "
            f"repair `{_REPAIRS.get(settings['refit'], settings['refit'])}`.{_prompt_note(settings)}"
        ),
    )


def _prompt_note(settings: Mapping[str, Any]) -> str:
    """Return a sentence about the pruning prompt, if there is one: the model was tuned and measured with it."""
    prompt = Compresso(**settings.get("compresso", {})).prompt_text
    return "" if prompt is None else f" Tuned and measured after this prompt and an empty\nline: “{prompt}”"


def _of_oneshot(record: RunRecord, settings: Mapping[str, Any], structure: Structure) -> _Words:
    """A run without training."""
    name, pruning, sparsity = _base_name(record), record.metrics.pruning, record.metrics.sparsity
    if pruning is not None:
        widths, tuned = pruning.widths or {}, pruning.norms.steps if pruning.norms else 0
        return _Words(
            title=_removed_in_words(pruning),
            what=(
                f"A structurally pruned copy of `{name}`: {_removed_kinds(structure, widths)} were removed without "
                f"training.\n{_all_widths(widths, structure)}"
            ),
            facts=(
                f"{_removed_shares(pruning)} Method `{settings['method']}`,\nallocation `{settings['allocation']}`, "
                f"repair `{pruning.repair}`{f', then {tuned} steps on the norms' if tuned else ''}."
            ),
            command="oneshot",
        )
    assert sparsity is not None
    return _Words(
        title=f"{sparsity.pattern} sparse",
        what=(
            f"A sparse copy of `{name}`, made without training: {sparsity.reached:.2%} of the weights of the\n"
            f"blocks' linear layers are zero ({sparsity.pattern}, method `{settings['method']}`). Shapes and file size "
            "are those of the\noriginal, and plain inference is no faster. A merged LoRA adapter would fill the zeros; "
            "`loraprune recover`\ntunes the model and keeps the zeros."
        ),
        facts=f"Zeros: {sparsity.zeros:,} of {sparsity.weights:,} weights.",
        tag="sparse",
        after="sparse",
        recorded="the zeros of each matrix",
        command="oneshot",
    )


def _of_pst(record: RunRecord) -> _Words:
    """A run that sets single weights to zero during LoRA tuning."""
    sparsity = record.metrics.sparsity
    assert sparsity is not None
    assert sparsity.after is not None
    return _Words(
        title=f"{sparsity.pattern} sparse",
        what=(
            f"A sparse copy of `{_base_name(record)}`: {sparsity.reached:.2%} of the weights that LoRA adapted are\n"
            "zero. The masks were learned (PST) while LoRA tuned the model, and the adapter is merged. Shapes and\n"
            "file size are those of the original, and plain inference is no faster. Another merged LoRA adapter would\n"
            "fill the zeros; `loraprune recover` tunes the model and keeps the zeros."
        ),
        facts=(
            f"Zeros: {sparsity.zeros:,} of {sparsity.weights:,} adapted weights (target {sparsity.target:.2%}); "
            f"{sparsity.after.share:.2%} of all weights of the\nblocks' linear layers."
        ),
        tag="sparse",
        after="sparse",
        recorded="the mask updates",
    )


def _of_recovery(record: RunRecord, *, keeps_zeros: bool) -> _Words:
    """A run that tunes a pruned or sparse model."""
    was = "" if record.base_pruning is None else record.base_pruning.in_words()
    base = f"`{_base_name(record)}` ({was})" if was else f"`{_base_name(record)}`"
    facts, sparsity = "No weight was removed.", record.metrics.sparsity
    if sparsity is not None and sparsity.before is not None and sparsity.after is not None:
        before, after = sparsity.before, sparsity.after
        facts += (
            f" Zeros in the blocks' linear layers: {before.zeros:,} of {before.weights:,} before\n"
            f"({before.share:.2%}), {after.zeros:,} after ({after.share:.2%})."
        )
    how = "LoRA tuned it, and the adapter is merged."
    if keeps_zeros:
        how += " Weights that\nwere zero were masked during tuning and are still zero."
    return _Words(
        title="recovered",
        what=f"A copy of {base}: {how}",
        facts=facts,
        tag="recovered",
        before="before",
        after="after",
        recorded="the known history of the base",
        command="recover",
    )


# Updates to the table of a model card.

_HEAD = re.compile(r"^\| +\|.*\|\n\|(?:-+\|)+\n", re.MULTILINE)
UNKNOWN = "–"


def with_rows(card: str, rows: Sequence[Row]) -> str:
    """Add rows to the table of a card. A new row replaces a row of the same name.

    Args:
        card: text of a card that a run wrote.
        rows: rows to add, in order.

    Raises:
        ValueError: the card has no table of measures.
    """
    head = _HEAD.search(card)
    if head is None:
        raise ValueError("it holds no table of measures")
    lines = card[head.end() :].splitlines(keepends=True)
    count = next((place for place, line in enumerate(lines) if not line.startswith("|")), len(lines))
    new = {_name(line): line for line in map(_line, rows)}
    old = [line for line in lines[:count] if _name(line) not in new]
    return card[: head.end()] + "".join([*old, *new.values(), *lines[count:]])


def _name(line: str) -> str:
    """First cell without the parenthesis at its end, because the measured amount may have changed."""
    return line.split("|")[1].partition("(")[0].strip()


def _line(row: Row) -> str:
    form = CARD_FORMATS[row.unit]
    dense, pruned = (UNKNOWN if value is None else f"{value:{form}}" for value in (row.dense, row.pruned))
    detail = f" ({row.detail})" if row.detail else ""
    return f"| {row.label}{detail} | {dense} | {pruned} |\n"
