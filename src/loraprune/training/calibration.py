"""Calibration sequences drawn from a tokenized data set."""

from __future__ import annotations

from typing import Any

import torch


def draw_calibration(dataset: Any, count: int, seed: int) -> list[torch.Tensor]:
    """Draw rows without replacement; fewer where the data set has fewer.

    Args:
        dataset: rows with ``input_ids``, as a Trainer's data set has after tokenization.
        count: how many to draw.
        seed: the same seed draws the same rows.

    Returns:
        1-D int64 tensors of token ids, of at least two tokens each.

    Raises:
        ValueError: the data set has no length, no ``input_ids``, or no row of two tokens.
    """
    if not hasattr(dataset, "__len__") or len(dataset) == 0 or "input_ids" not in dataset[0]:
        raise ValueError(
            "Calibration sequences for the refit cannot be drawn from this training data: it needs a length and a "
            "column 'input_ids'. Pass PruningCallback(calibration=[...]), or switch the refit off."
        )
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn: list[torch.Tensor] = []
    for index in order:
        row = torch.as_tensor(dataset[index]["input_ids"], dtype=torch.long)
        if len(row) >= 2:
            drawn.append(row)
        if len(drawn) == count:
            break
    if not drawn:
        raise ValueError("No training sequence has two tokens or more, so the refit has nothing to look at.")
    return drawn
