"""Facts of the data in the outlook: rows, tokens, padding, and rows truncated or left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from loraprune.record.numbers import count, counted, percent

if TYPE_CHECKING:
    from datasets import Dataset

    from loraprune.recipes.steps.prepared import PreparedRun


def row_lengths(rows: Dataset) -> list[int]:
    """Return the number of tokens in each row; empty for rows without token ids."""
    if "input_ids" not in rows.column_names or not len(rows):
        return []
    from pyarrow import compute  # type: ignore[import-untyped]

    tables = rows.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=1000)
    return [int(length) for table in tables for length in compute.list_value_length(table["input_ids"]).to_pylist()]


def padded_share(lengths: Sequence[int], batch: int) -> float:
    """Return the expected share of padding, if rows have a random order and batches are padded to the longest row.

    Args:
        lengths: number of tokens in each row.
        batch: number of rows in a batch.
    """
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).tolist()
    batches = [[lengths[row] for row in order[start : start + batch]] for start in range(0, len(order), batch)]
    padded = sum(max(some) * len(some) for some in batches)
    return 1.0 - sum(lengths) / padded if padded else 0.0


def data_facts(prepared: PreparedRun, lengths: Sequence[int], batch: int | None = None) -> str:
    """Summarize rows, tokens, padding and lost rows of the data.

    Args:
        prepared: the run.
        lengths: number of tokens in each row; empty if rows are not text.
        batch: number of rows in a training batch; None without training.
    """
    rows, facts = prepared.rows.prepared, prepared.rows.prepared.facts
    parts = [counted(len(prepared.train_rows), "row")]
    if lengths:
        most = max(lengths)
        longest = f"of {most:,}" if min(lengths) == most else f"of up to {most:,}"
        parts[0] += f" {longest} tokens ({count(sum(lengths))} tokens)"
        if batch is not None and min(lengths) != most:
            parts.append(f"{percent(padded_share(lengths, batch))} padding")
    truncated, dropped = facts.get("truncated_rows") or 0, facts.get("dropped_rows") or 0
    if truncated and rows.total:
        parts.append(f"{percent(int(str(truncated)) / rows.total)} of the rows truncated")
    if dropped and rows.total:
        parts.append(f"{percent(int(str(dropped)) / rows.total)} of the rows left out")
    if prepared.held_out is not None:
        parts.append(f"{counted(len(prepared.held_out), 'row')} held out")
    return ", ".join(parts)
