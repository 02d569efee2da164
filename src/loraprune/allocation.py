"""How a sparsity ratio is spread over the prunable dimensions of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch

from loraprune.averaging import Scores
from loraprune.plan import Plan
from loraprune.structure import Structure
from loraprune.widths import LegalWidths

Allocation = Literal["balanced", "uniform"]
ALLOCATIONS: tuple[str, ...] = get_args(Allocation)

Widths = dict[str, int]
"""Groups kept in every layer, for each kind of dimension."""


def _channels_for(structure: Structure, heads: int, kept_parameters: float, legal: LegalWidths, limit: int) -> int:
    """FFN width, rounded and legal, that together with ``heads`` comes nearest to ``kept_parameters``."""
    attention = heads * sum(dimension.parameters_per_group for dimension in structure.of_kind("heads"))
    per_channel = sum(dimension.parameters_per_group for dimension in structure.of_kind("channels"))
    exact = (kept_parameters - attention) / per_channel
    multiple = legal.channel_multiple
    width = max(round(exact / multiple), 1) * multiple
    return min(width, limit)


def _candidates(structure: Structure, plan: Plan, ratio: float, legal: LegalWidths) -> list[Widths]:
    """Legal pairs of head and channel counts, no larger than the plan's, that meet the parameter target best.

    Where the finest step (one channel multiple in every layer) can meet the target, only pairs that do are given.
    Otherwise, the pair that comes nearest.
    """
    max_heads = min(plan.counts(structure, "heads"))
    max_channels = min(plan.counts(structure, "channels"))
    kept_parameters = (1.0 - ratio) * structure.prunable_parameters
    head_parameters = sum(dimension.parameters_per_group for dimension in structure.of_kind("heads"))
    channel_parameters = sum(dimension.parameters_per_group for dimension in structure.of_kind("channels"))
    pairs: list[tuple[float, Widths]] = []
    for heads in legal.head_groups:
        if heads <= max_heads:
            channels = _channels_for(structure, heads, kept_parameters, legal, max_channels)
            kept = heads * head_parameters + channels * channel_parameters
            pairs.append((abs(kept - kept_parameters), {"heads": heads, "channels": channels}))
    tolerance = 0.5 * legal.channel_multiple * channel_parameters * (1 + 1e-9)
    close = [widths for error, widths in pairs if error <= tolerance]
    return close or [min(pairs, key=lambda pair: pair[0])[1]]


def _kept_positions(scores: torch.Tensor, count: int) -> list[int]:
    """Positions of the ``count`` largest scores, ascending; of equal ones the first stay."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return sorted(order[:count].tolist())


def _lost_importance(structure: Structure, scores: Scores, widths: Widths) -> float:
    """Importance of the groups that these widths remove."""
    lost = 0.0
    for dimension in structure:
        values = torch.sort(scores[dimension.name].double()).values
        lost += values[: len(values) - widths[dimension.kind]].sum().item()
    return lost


def _uniform(structure: Structure, scores: Scores, ratio: float, candidates: list[Widths]) -> Widths:
    """The paper's rule: the share of heads nearest to the ratio; channels make up the difference."""
    exact = (1.0 - ratio) * structure.of_kind("heads")[0].num_groups
    return min(candidates, key=lambda widths: (abs(widths["heads"] - exact), -widths["heads"]))


def _balanced(structure: Structure, scores: Scores, ratio: float, candidates: list[Widths]) -> Widths:
    """Of all splits between attention and FFN with the same parameters, the one that loses least importance."""
    return min(candidates, key=lambda widths: (_lost_importance(structure, scores, widths), -widths["heads"]))


_RULES: dict[str, Callable[[Structure, Scores, float, list[Widths]], Widths]] = {
    "uniform": _uniform,
    "balanced": _balanced,
}


def allocate(
    structure: Structure, plan: Plan, scores: Scores, ratio: float, legal: LegalWidths, allocation: str = "balanced"
) -> Plan:
    """Shrink a plan to a sparsity ratio: choose the widths, then keep the most important groups.

    Args:
        structure: the model before pruning.
        plan: what is kept so far.
        scores: importance of the groups kept so far.
        ratio: removed parameters as a share of all prunable ones, counted from the unpruned model.
        legal: widths that may be chosen.
        allocation: ``uniform`` (every dimension loses the same share, as in the LoRAPrune paper) or ``balanced``
            (the split between attention and FFN that loses least importance for the same parameters).

    Returns:
        A plan with the same widths in every layer whose ratio is within half a channel multiple of the target,
        unless the plan is already smaller.
    """
    if plan.ratio(structure) >= ratio and plan.is_uniform(structure):
        return plan
    widths = _RULES[allocation](structure, scores, ratio, _candidates(structure, plan, ratio, legal))
    return plan.keep(
        {dimension.name: _kept_positions(scores[dimension.name], widths[dimension.kind]) for dimension in structure}
    )


def check_reachable(structure: Structure, ratio: float, legal: LegalWidths) -> None:
    """Make sure that the ratio can be met without emptying a dimension.

    Raises:
        ValueError: even one head group and one channel multiple in every layer keep too much; or the rounding of
            the FFN leaves nothing to remove. The message says what can be reached.
    """
    plan = Plan.full(structure)
    channel_parameters = sum(dimension.parameters_per_group for dimension in structure.of_kind("channels"))
    tolerance = 0.5 * legal.channel_multiple * channel_parameters * (1 + 1e-9)
    best = _candidates(structure, plan, ratio, legal)
    kept = [_kept_share(structure, widths) for widths in best]
    error = min(abs(share - (1.0 - ratio)) for share in kept) * structure.prunable_parameters
    if error > tolerance:
        smallest = _kept_share(
            structure, {"heads": legal.head_groups[0], "channels": min(legal.channel_multiple, _channels(structure))}
        )
        raise ValueError(
            f"A ratio of {ratio} would empty a dimension: with at least {legal.head_groups[0]} KV head(s) and "
            f"{legal.channel_multiple} channel(s) in every layer, at most {1.0 - smallest:.4f} of the prunable "
            "parameters can go. Ask for less, or lower --channel-multiple."
        )


def _channels(structure: Structure) -> int:
    return structure.of_kind("channels")[0].num_groups


def _kept_share(structure: Structure, widths: Widths) -> float:
    kept = sum(widths[dimension.kind] * dimension.parameters_per_group for dimension in structure)
    return kept / structure.prunable_parameters


def ratio_for_parameters(structure: Structure, target: int) -> float:
    """The sparsity ratio that leaves the whole model with ``target`` parameters.

    Raises:
        ValueError: the target is not below the model's size, or below what pruning cannot touch.
    """
    fixed = structure.num_parameters - structure.prunable_parameters
    if not fixed < target < structure.num_parameters:
        raise ValueError(
            f"A target of {target:,} parameters cannot be met: the model has {structure.num_parameters:,}, and "
            f"{fixed:,} of them (embeddings, norms, head) are not prunable."
        )
    return (structure.num_parameters - target) / structure.prunable_parameters
