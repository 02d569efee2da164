"""Rows to train on and rows to measure on."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from loraprune.data.formats import DataFormat, PreparedRows
from loraprune.data.mixture import Reading, read_data
from loraprune.data.named import find_sources, hub_data_set, is_stream
from loraprune.data.streams import RowStream
from loraprune.metrics.perplexity import Collator, HeldOut, HeldOutRows
from loraprune.record.numbers import counted
from loraprune.tasks.options import RunOptions
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


def split_rows(task: Task, data: Any, setup: Setup, seed: int, sequences: int) -> SplitRows:
    """Prepare the data, and hold out rows to measure on: from ``eval_data``, or a twentieth of the training data.

    Args:
        task: task of the model.
        data: data in any form that :func:`loraprune.data.named.find_sources` takes.
        setup: settings for preparing rows.
        seed: seed of the held-out rows and of a mixture.
        sequences: number of prepared rows that the run uses; a stream is not read further. The first rows of a stream
            are held out.

    Raises:
        ValueError: the data does not fit the task or the model.
    """
    data, wanted = find_sources(data), _wanted(task, setup)
    of_own = setup.options.eval_data is None and wanted > 0
    _check_repeats(data, setup.options, holds_out=of_own)
    most = sequences + (wanted if of_own else 0)
    prepared = _prepared(task, data, setup.options.split, setup, seed, most)
    tell_of_lost_rows(prepared)
    tell_of_plain_rows(prepared, setup.processor)
    tell_of_sources(prepared)
    rows = prepared.dataset
    collator, hub_data = task.collator(prepared, setup), hub_data_set(data)
    if not of_own:
        held_out = rows_to_measure_on(task, setup, beside_others=True).held_out
        return SplitRows(prepared=prepared, train=rows, held_out=held_out, collator=collator, hub_data=hub_data)
    streamed = is_streamed(data, setup.options)
    count = wanted if streamed and len(rows) >= most else min(wanted, len(rows) // HELD_OUT_SHARE)
    if count == 0:
        names = " and ".join(measure.label.lower() for measure in task.measures if measure.of_quality)
        logger.info("The data is too short to hold out rows: %s is not measured.", names)
        return SplitRows(prepared=prepared, train=rows, held_out=None, collator=collator, hub_data=hub_data)
    if streamed:
        order = list(range(len(rows)))
        told = counted(count, task.row_name)
        logger.info("Streaming: the first %s are held out, the next %s are used", told, f"{len(rows) - count:,}")
    else:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = task.held_out(rows.select(sorted(order[:count])), collator)
    train = rows.select(sorted(order[count:]))
    return SplitRows(prepared=prepared, train=train, held_out=held_out, collator=collator, hub_data=hub_data)


def is_streamed(data: Any, options: RunOptions) -> bool:
    """Return whether data is read row by row, and only as far as it is used."""
    return options.streaming or any(is_stream(source.loaded) for source in find_sources(data))


def _check_repeats(data: Any, options: RunOptions, *, holds_out: bool) -> None:
    """Check that no row is both trained on and measured on.

    Raises:
        ValueError: a mixture repeats rows, and some of them would be held out.
    """
    repeats = options.stopping_strategy == "all_exhausted" and find_sources(data)[0].weight is not None
    if repeats and holds_out:
        raise ValueError(
            "--stopping-strategy all_exhausted repeats rows, so some would be trained on and measured on. Pass "
            "--eval-data, or measure nothing with --eval-sequences 0."
        )


def rows_to_measure_on(task: Task, setup: Setup, *, beside_others: bool = False) -> SplitRows:
    """Return the rows of a run without training or calibration data: those of ``eval_data``, or none.

    Args:
        task: task of the model.
        setup: settings for preparing rows.
        beside_others: whether the options for columns also apply to training data.
    """
    options, wanted = setup.options, _wanted(task, setup)
    if options.eval_data is None or wanted == 0:
        from datasets import Dataset

        nothing = PreparedRows(dataset=Dataset.from_dict({}), facts={}, total=0)
        return SplitRows(prepared=nothing, train=nothing.dataset, held_out=None, collator=setup.collator)
    prepared = _prepared(task, options.eval_data, options.eval_split, setup, 0, wanted, may_be_renamed=beside_others)
    collator = task.collator(prepared, setup)
    held_out = task.held_out(prepared.dataset.select(range(min(wanted, len(prepared.dataset)))), collator)
    return SplitRows(prepared=prepared, train=prepared.dataset.select(()), held_out=held_out, collator=collator)


def _wanted(task: Task, setup: Setup) -> int:
    """Maximum number of rows to measure on."""
    return task.eval_rows if setup.options.eval_sequences is None else setup.options.eval_sequences


def _prepared(
    task: Task, data: Any, split: str, setup: Setup, seed: int, most: int, *, may_be_renamed: bool = False
) -> PreparedRows:
    """Prepare rows for the task; of a stream, only the first ``most``."""
    options = setup.options
    raw = read_data(
        data,
        Reading(
            split=split,
            name=options.data_name,
            columns=options.columns,
            may_be_renamed=may_be_renamed,
            streaming=options.streaming,
            stopping_strategy=options.stopping_strategy,
            seed=seed,
        ),
    )
    if not isinstance(raw.rows, RowStream):
        prepared = task.prepare(raw.rows, setup)
    elif task.reads_streams:
        prepared = task.prepare(raw.rows, replace(setup, most_rows=most))
    else:
        prepared = task.prepare(raw.rows.first(most), setup)
    return replace(prepared, facts={**prepared.facts, "sources": raw.facts()})


def tell_of_sources(prepared: PreparedRows) -> None:
    """Log the number of rows used from each source, if there are several."""
    sources = prepared.facts["sources"]
    if len(sources) < 2:
        return
    words = []
    for fact in sources:
        of = "" if fact.get("rows") in (None, fact["used"]) else f" of {fact['rows']:,}"
        words.append(f"{fact['used']:,}{of} of {fact['source']}")
    logger.info("Rows of the data: %s", ", ".join(words))


def tell_of_lost_rows(prepared: PreparedRows) -> None:
    """Warn about rows that are changed or dropped and about unused columns, which may be unintended."""
    if prepared.unused:
        logger.warning("warning: columns of the data that are not used: %s", ", ".join(prepared.unused))
    for what, number in prepared.lost.items():
        if number:
            logger.warning("warning: training rows %s: %d of %d", what, number, prepared.total)


_PLAIN = {DataFormat.TEXT.value: "plain text", DataFormat.INSTRUCTION.value: "instructions"}
"""Formats of data that no chat template writes, and what a user calls them."""


def tell_of_plain_rows(prepared: PreparedRows, processor: Any) -> None:
    """Log that the rows do not go through the chat template that the tokenizer has.

    It is no warning: tokenizers of many base models have a template, too.
    """
    what = _PLAIN.get(prepared.facts.get("format", ""))
    if what is not None and getattr(processor, "chat_template", None):
        logger.info(
            "The data holds %s, which the run reads without the tokenizer's chat template. For an instruct model, give "
            "conversations (a column 'messages').",
            what,
        )


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
