"""Rows to train on and rows to measure on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from loraprune.data.formats import PreparedRows
from loraprune.data.sources import hub_data_set, load_source
from loraprune.metrics.perplexity import Collator, HeldOut, HeldOutRows
from loraprune.tasks.task import Setup, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig

logger = logging.getLogger("loraprune")

HELD_OUT_SHARE = 20


@dataclass(frozen=True, kw_only=True)
class SplitRows:
    """Training and held-out rows of a run.

    Attributes:
        prepared: all rows of the training data, with statistics.
        train: rows to train on.
        held_out: rows to measure on, or None.
        collator: collator of the Trainer; None uses the Trainer's own.
        hub_data: name of the training data on the Hub, if it comes from there.
    """

    prepared: PreparedRows
    train: Dataset
    held_out: HeldOut | HeldOutRows | None
    collator: Collator | None
    hub_data: str | None = None


def split_rows(task: Task, dataset: str | Path | Dataset, setup: Setup, seed: int) -> SplitRows:
    """Prepare the data, and hold out rows to measure on: from ``eval_data``, or a twentieth of the training data.

    Raises:
        ValueError: the data does not fit the task or the model.
    """
    prepared = _prepared(task, dataset, setup.options.split, setup)
    tell_of_lost_rows(prepared)
    rows = prepared.dataset
    collator, hub_data = task.collator(prepared, setup), hub_data_set(dataset)
    wanted = _wanted(task, setup)
    if wanted == 0 or setup.options.eval_data is not None:
        held_out = rows_to_measure_on(task, setup).held_out
        return SplitRows(prepared=prepared, train=rows, held_out=held_out, collator=collator, hub_data=hub_data)
    count = min(wanted, len(rows) // HELD_OUT_SHARE)
    if count == 0:
        names = " and ".join(measure.label.lower() for measure in task.measures if measure.of_quality)
        logger.info("The data is too short to hold some of it out: %s is not measured.", names)
        return SplitRows(prepared=prepared, train=rows, held_out=None, collator=collator, hub_data=hub_data)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = task.held_out(rows.select(sorted(order[:count])), collator)
    train = rows.select(sorted(order[count:]))
    return SplitRows(prepared=prepared, train=train, held_out=held_out, collator=collator, hub_data=hub_data)


def rows_to_measure_on(task: Task, setup: Setup) -> SplitRows:
    """Rows for a run that uses no training data: only those of ``eval_data``, or none."""
    options, wanted = setup.options, _wanted(task, setup)
    if options.eval_data is None or wanted == 0:
        from datasets import Dataset

        nothing = PreparedRows(dataset=Dataset.from_dict({}), facts={}, total=0)
        return SplitRows(prepared=nothing, train=nothing.dataset, held_out=None, collator=setup.collator)
    prepared = _prepared(task, options.eval_data, options.eval_split, setup)
    collator = task.collator(prepared, setup)
    held_out = task.held_out(prepared.dataset.select(range(min(wanted, len(prepared.dataset)))), collator)
    return SplitRows(prepared=prepared, train=prepared.dataset.select(()), held_out=held_out, collator=collator)


def _wanted(task: Task, setup: Setup) -> int:
    """Maximum number of rows to measure on."""
    return task.eval_rows if setup.options.eval_sequences is None else setup.options.eval_sequences


def _prepared(task: Task, source: str | Path | Dataset, split: str, setup: Setup) -> PreparedRows:
    options = setup.options
    if not isinstance(source, (str, Path)):
        rows = source
    elif Path(source).is_file():
        rows = load_source(str(source))
    else:
        rows = load_source(str(source), split=split, name=options.data_name)
    return task.prepare(rows, setup)


def tell_of_lost_rows(prepared: PreparedRows) -> None:
    """Warn about rows that are changed or dropped and about unused columns, which may be unintended."""
    if prepared.unused:
        logger.warning("warning: columns of the data that are not used: %s", ", ".join(prepared.unused))
    for what, number in prepared.lost.items():
        if number:
            logger.warning("warning: training rows %s: %d of %d", what, number, prepared.total)


def check_token_ids(rows: Dataset, vocabulary_size: int, config: PretrainedConfig) -> None:
    """Check that the model has an embedding for every token of the data.

    Args:
        rows: rows with ``input_ids``.
        vocabulary_size: vocabulary size of the tokenizer.
        config: config of the model.

    Raises:
        ValueError: a token has no embedding.
    """
    vocabulary = getattr(config, "vocab_size", None)
    if vocabulary is None or vocabulary_size <= vocabulary:
        return
    largest = max(max(row["input_ids"]) for row in rows)
    if largest >= vocabulary:
        raise ValueError(
            f"The tokenizer does not fit the model: the data has token {largest}, and the model knows {vocabulary}."
        )
