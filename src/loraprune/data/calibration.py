"""Calibration data: sequences drawn from prepared data, on which a model is measured while it is pruned."""

from __future__ import annotations

import torch

from loraprune.data.formats import PreparedData


def calibration_sequences(prepared: PreparedData, count: int, seed: int) -> list[torch.Tensor]:
    """Draw ``count`` rows without replacement, or all rows if there are fewer.

    Rows of a single token predict nothing and are left out.

    Args:
        prepared: the data to draw from.
        count: sequences wanted, 1 or more.
        seed: equal seeds draw equal sequences from equal data.

    Returns:
        Token ids, each of shape ``(length,)`` and dtype int64, without padding.

    Raises:
        ValueError: ``count`` is not positive, or no row has two tokens.
    """
    if count < 1:
        raise ValueError(f"count={count} draws no calibration sequences. Give 1 or more.")
    rows = prepared.dataset.select_columns(["input_ids"]).with_format(None)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    sequences: list[torch.Tensor] = []
    for row in order.tolist():
        token_ids = rows[row]["input_ids"]
        if len(token_ids) >= 2:
            sequences.append(torch.tensor(token_ids, dtype=torch.int64))
        if len(sequences) == count:
            break
    if not sequences:
        raise ValueError("The data has no sequence of two tokens or more to calibrate on. Give longer text.")
    return sequences
