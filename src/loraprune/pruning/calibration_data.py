"""Calibration data drawn from a Trainer's data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from loraprune.calibration.block_by_block import Calibration
from loraprune.calibration.least_squares import TOKENS_A_FEATURE, are_few
from loraprune.importance.configs import Osscar
from loraprune.importance.criterion_config import CriterionConfig
from loraprune.surgery.repairs import Repair

if TYPE_CHECKING:
    from loraprune.structure.dimensions import Structure

logger = logging.getLogger("loraprune")

BATCH = 16

Batch = dict[str, torch.Tensor]


def draw_calibration(dataset: Any, count: int, seed: int) -> list[torch.Tensor]:
    """Draw rows of token ids without replacement; fewer where the data set has fewer.

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
            "column 'input_ids'. Pass PruningCallback(calibration=[...]), or say repair='none'."
        )
    drawn: list[torch.Tensor] = []
    for index in _order(dataset, seed):
        row = torch.as_tensor(dataset[index]["input_ids"], dtype=torch.long)
        if len(row) >= 2:
            drawn.append(row)
        if len(drawn) == count:
            break
    if not drawn:
        raise ValueError("No sequence of the data has two tokens or more, so that there is nothing to calibrate on.")
    return drawn


def num_tokens(calibration: Calibration) -> int:
    """Tokens of the sequences among calibration data."""
    return sum(len(item) for item in calibration if isinstance(item, torch.Tensor))


def warn_of_few_tokens(
    structure: Structure, calibration: Calibration, repair: Repair, criterion: CriterionConfig
) -> None:
    """Say that there is less to look at than the unknowns of a repair, or of the criterion ``osscar``, call for.

    Args:
        structure: of the model before pruning.
        calibration: nothing is said of batches of inputs, whose tokens are not counted.
        repair: of the cuts.
        criterion: that scores the groups.
    """
    if structure.spans_blocks or not (repair.reads_data or isinstance(criterion, Osscar)):
        return
    tokens = num_tokens(calibration)
    widest = max(
        (dimension.per_stratum if dimension.of_experts else dimension.num_groups) * dimension.consumer.group_size
        for dimension in structure.open
    )
    if tokens and are_few(tokens, widest):
        held_back = " The repair is held back to what they bear out." if repair.reads_data else ""
        logger.warning(
            "warning: %d calibration tokens are few for the %d features that the widest layer reads: %d and more for "
            "each feature are enough.%s More calibration sequences help.",
            tokens,
            widest,
            TOKENS_A_FEATURE,
            held_back,
        )


def draw_batches(
    dataset: Any, collator: Callable[[list[Any]], Mapping[str, Any]], count: int, seed: int, dtype: torch.dtype
) -> list[Batch]:
    """Draw rows as batches of a model's inputs; rows of equal shapes share a batch, so that nothing is padded.

    Args:
        dataset: any rows.
        collator: makes the model's inputs of rows.
        count: how many rows to draw.
        seed: the same seed draws the same rows.
        dtype: of the model, for inputs that are no whole numbers.

    Raises:
        ValueError: the data set has no length.
    """
    if not hasattr(dataset, "__len__") or len(dataset) == 0:
        raise ValueError(
            "Calibration data for the refit cannot be drawn from this training data: it needs a length. Pass "
            "PruningCallback(calibration=[...]), or say repair='none'."
        )
    rows = [dict(collator([dataset[index]])) for index in _order(dataset, seed)[:count]]
    return [_joined(part, dtype) for part in _of_equal_shapes(rows)]


def _order(dataset: Any, seed: int) -> list[int]:
    order: list[int] = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def _shapes(row: Mapping[str, Any]) -> list[tuple[str, list[int]]]:
    return sorted((name, list(value.shape)) for name, value in row.items() if isinstance(value, torch.Tensor))


def _of_equal_shapes(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for _, group in groupby(sorted(rows, key=_shapes), key=_shapes):
        alike = list(group)
        for start in range(0, len(alike), BATCH):
            yield alike[start : start + BATCH]


def _joined(rows: list[dict[str, Any]], dtype: torch.dtype) -> Batch:
    """Rows of one example each as one batch."""
    names = [name for name, value in rows[0].items() if isinstance(value, torch.Tensor) and value.dim() > 0]
    batch = {name: torch.cat([row[name] for row in rows]) for name in names}
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}
