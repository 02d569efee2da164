"""What a run says of its data before it starts: rows, tokens, and the share that is padding or was cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from loraprune.record.numbers import count, counted, percent

if TYPE_CHECKING:
    from datasets import Dataset

    from loraprune.recipes.steps.prepared import PreparedRun


def row_lengths(rows: Dataset) -> list[int]:
    """Tokens of each row; empty for rows without token ids."""
    if "input_ids" not in rows.column_names or not len(rows):
        return []
    from pyarrow import compute  # type: ignore[import-untyped]

    tables = rows.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=1000)
    return [int(length) for table in tables for length in compute.list_value_length(table["input_ids"]).to_pylist()]


def padded_share(lengths: Sequence[int], batch: int) -> float:
    """Expected share of padding, if rows are drawn in random order and each batch is as long as its longest row.

    Args:
        lengths: tokens of each row.
        batch: rows of a batch.
    """
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).tolist()
    batches = [[lengths[row] for row in order[start : start + batch]] for start in range(0, len(order), batch)]
    padded = sum(max(some) * len(some) for some in batches)
    return 1.0 - sum(lengths) / padded if padded else 0.0


def data_facts(prepared: PreparedRun, lengths: Sequence[int], batch: int | None = None) -> str:
    """Rows, tokens, padding and losses of the data in one sentence.

    Args:
        prepared: the run.
        lengths: of its rows; empty if they are no text.
        batch: rows of a training batch; None without training.
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
