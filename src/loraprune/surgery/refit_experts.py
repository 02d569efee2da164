"""Refit inside a mixture of experts: each expert's down projection compensates for its own removed channels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraprune.calibration.block_by_block import CalibrationPass
from loraprune.calibration.least_squares import Moments, NotPositiveDefiniteError, held_back_columns
from loraprune.layers.lora import effective_expert_weight, expert_delta, expert_weight_oi
from loraprune.layers.unwrap import base_model
from loraprune.surgery.output_error import OutputError, output_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loraprune.calibration.routed_tokens import RoutedTokens
    from loraprune.structure.dimensions import PrunableDimension


@torch.no_grad()
def refit_experts_(
    model: nn.Module,
    dimension: PrunableDimension,
    positions: Sequence[int],
    num_groups: int,
    calibration: CalibrationPass,
    damping: float,
) -> OutputError | None:
    """Rewrite the columns that stay, before the cut, to keep the output of each expert nearly unchanged.

    One second moment is in memory at a time, that of one expert. If a whole expert is removed, its tokens go to
    others, whose weights have nothing in common with its own, so there is nothing to refit.

    Args:
        model: the model or the ``PeftModel`` around it.
        dimension: dimension about to be cut.
        positions: positions of the current groups that stay, ascending.
        num_groups: current number of groups.
        calibration: pass over the calibration data, positioned at the experts' block.
        damping: see :func:`loraprune.calibration.least_squares.refit_columns`.

    Returns:
        The combined error of all experts, each counted for the tokens that are routed to it, by their weights; None
        if nothing is refitted.
    """
    consumer = dimension.consumer
    if not consumer.stacked:
        return None
    module = base_model(model).get_submodule(consumer.module)
    tokens = calibration.routed_tokens(consumer.module)
    kept_EK = consumer.stacked_positions(torch.as_tensor(positions), num_groups, dimension.strata)

    left_alone, errors = 0, OutputError(wanted=0.0, cut=0.0)
    for expert, kept in enumerate(kept_EK):
        inputs = tokens.weighted_features(module, expert, moment=True)
        base = expert_weight_oi(module, consumer.parameter, expert).data
        columns, before = kept.to(base.device), effective_expert_weight(module, consumer.parameter, expert)
        try:
            if inputs is None:
                raise NotPositiveDefiniteError("The second moment of the inputs is zero.")
            after = held_back_columns(
                before, Moments(inputs.moment, inputs.rows), columns, damping, _part_of(tokens, module, expert)
            )
        except NotPositiveDefiniteError:
            left_alone += 1
            if inputs is not None:
                errors += output_error(before, inputs.moment, columns, None).times(inputs.rows)
            continue
        errors += output_error(before, inputs.moment, columns, after).times(inputs.rows)
        if after is None:
            continue
        delta = expert_delta(module, consumer.parameter, expert)
        base[:, columns] = (after if delta is None else after - delta[:, columns]).to(base.dtype)
    if left_alone:
        warnings.warn(
            f"{dimension.name}: {left_alone} of {dimension.strata} experts are cut without a refit, because too few "
            "calibration tokens are routed to them. Use more calibration sequences.",
            stacklevel=2,
        )
    return errors


def _part_of(tokens: RoutedTokens, module: Any, expert: int) -> Callable[[slice], Moments]:
    """Moments of an expert's inputs over a part of its tokens."""

    def of_rows(rows: slice) -> Moments:
        found = tokens.weighted_features(module, expert, moment=True, rows=rows)
        assert found is not None
        return Moments(found.moment, found.rows)

    return of_rows
