"""Calibration data drawn from a Trainer's dataset."""

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
    """Draw rows of token ids without replacement.

    Args:
        dataset: rows with ``input_ids``, as in a Trainer's dataset after tokenization.
        count: number of rows; a smaller dataset gives fewer.
        seed: random seed.

    Returns:
        1-D int64 tensors of token ids, with at least two tokens each.

    Raises:
        ValueError: the dataset has no length, no ``input_ids``, or no row of two tokens.
    """
    if not hasattr(dataset, "__len__") or len(dataset) == 0 or "input_ids" not in dataset[0]:
        raise ValueError(
            "Calibration sequences cannot be drawn from this training data: it needs a length and a column "
            "'input_ids'. Pass PruningCallback(calibration=[...]) or repair='none'."
        )
    drawn: list[torch.Tensor] = []
    for index in _order(dataset, seed):
        row = torch.as_tensor(dataset[index]["input_ids"], dtype=torch.long)
        if len(row) >= 2:
            drawn.append(row)
        if len(drawn) == count:
            break
    if not drawn:
        raise ValueError("No row of the data has two tokens or more; calibration needs at least one such row.")
    return drawn


def num_tokens(calibration: Calibration) -> int:
    """Return the number of tokens in calibration data; batches of inputs are not counted."""
    return sum(len(item) for item in calibration if isinstance(item, torch.Tensor))


def warn_of_few_tokens(
    structure: Structure, calibration: Calibration, repair: Repair, criterion: CriterionConfig
) -> None:
    """Warn if a repair, or the criterion ``osscar``, has too few calibration tokens for its unknowns.

    Args:
        structure: structure of the model before pruning.
        calibration: calibration data; batches of inputs are not counted.
        repair: repair of the cuts.
        criterion: criterion that scores the groups.
    """
    if structure.spans_blocks or not (repair.reads_data or isinstance(criterion, Osscar)):
        return
    tokens = num_tokens(calibration)
    widest = max(
        (dimension.per_stratum if dimension.of_experts else dimension.num_groups) * dimension.consumer.group_size
        for dimension in structure.open
    )
    if tokens and are_few(tokens, widest):
        held_back = " The repair is regularized more strongly." if repair.reads_data else ""
        logger.warning(
            "warning: %d calibration tokens are few for the %d input features of the widest layer: %d tokens a "
            "feature are enough.%s Use more calibration sequences.",
            tokens,
            widest,
            TOKENS_A_FEATURE,
            held_back,
        )


def draw_batches(
    dataset: Any, collator: Callable[[list[Any]], Mapping[str, Any]], count: int, seed: int, dtype: torch.dtype
) -> list[Batch]:
    """Draw rows as batches of a model's inputs; a batch holds rows of equal shapes, without padding.

    Args:
        dataset: any rows.
        collator: function that turns rows into the model's inputs.
        count: number of rows.
        seed: random seed.
        dtype: dtype of the model, for floating-point inputs.

    Raises:
        ValueError: the dataset has no length.
    """
    if not hasattr(dataset, "__len__") or len(dataset) == 0:
        raise ValueError(
            "Calibration data cannot be drawn from this training data: it needs a length. Pass "
            "PruningCallback(calibration=[...]) or repair='none'."
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
    """Join rows of one example each into a batch."""
    names = [name for name, value in rows[0].items() if isinstance(value, torch.Tensor) and value.dim() > 0]
    batch = {name: torch.cat([row[name] for row in rows]) for name in names}
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}
