"""How a sparsity ratio is spread over the prunable dimensions of a model."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from loraprune.averaging import Scores
from loraprune.plan import Plan
from loraprune.structure import Structure
from loraprune.widths import LegalWidths

Allocation = Literal["balanced", "uniform"]
ALLOCATIONS: tuple[str, ...] = get_args(Allocation)

HEAD_MARGIN = 1.1
"""``balanced`` gives up a KV head only where that loses clearly less importance. A head is a large step that no later
cut can make smaller or take back, and scores are noisy."""

Widths = dict[str, int]
"""Groups kept in every layer, for each kind of dimension."""


def _layer_parameters(structure: Structure, kind: str) -> int:
    """Parameters of one group of a kind in every layer."""
    return sum(dimension.parameters_per_group for dimension in structure.of_kind(kind))


def _kept_parameters(structure: Structure, widths: Widths) -> int:
    return sum(count * _layer_parameters(structure, kind) for kind, count in widths.items())


def _channels_beside(structure: Structure, heads: int, kept_parameters: float, legal: LegalWidths) -> int:
    """Legal FFN width that together with ``heads`` comes nearest to ``kept_parameters``."""
    attention = heads * _layer_parameters(structure, "heads")
    exact = (kept_parameters - attention) / _layer_parameters(structure, "channels")
    return max(round(exact / legal.channel_multiple), 1) * legal.channel_multiple


def _tolerance(structure: Structure, legal: LegalWidths) -> float:
    """Half of the finest step, one channel multiple in every layer, in parameters."""
    return 0.5 * legal.channel_multiple * _layer_parameters(structure, "channels") * (1 + 1e-9)


def final_candidates(structure: Structure, now: Widths, ratio: float, legal: LegalWidths) -> list[Widths]:
    """Legal widths, no larger than those of ``now``, that meet a ratio.

    All pairs that meet it to half a channel multiple; where there is none, the pair that comes nearest.
    """
    wanted = (1.0 - ratio) * structure.prunable_parameters
    pairs: list[tuple[float, Widths]] = []
    for heads in legal.head_groups:
        if heads <= now["heads"]:
            channels = min(_channels_beside(structure, heads, wanted, legal), now["channels"])
            widths = {"heads": heads, "channels": channels}
            pairs.append((abs(_kept_parameters(structure, widths) - wanted), widths))
    close = [widths for error, widths in pairs if error <= _tolerance(structure, legal)]
    return close or [min(pairs, key=lambda pair: pair[0])[1]]


def step_candidates(structure: Structure, now: Widths, final: Widths, ratio: float, legal: LegalWidths) -> list[Widths]:
    """Widths on the way from ``now`` to ``final`` that remove at least a ratio, and little more.

    Heads go in coarse steps, so that a pair on the way may have to remove more than the ratio: what the channels
    have given up already does not come back.
    """
    wanted = (1.0 - ratio) * structure.prunable_parameters
    pairs = []
    for heads in legal.head_groups:
        if final["heads"] <= heads <= now["heads"]:
            channels = _channels_beside(structure, heads, wanted, legal)
            channels = max(min(channels, now["channels"]), final["channels"])
            pairs.append({"heads": heads, "channels": channels})
    far_enough = wanted + _tolerance(structure, legal)
    return [widths for widths in pairs if _kept_parameters(structure, widths) <= far_enough] or [final]


def _kept_positions(scores: torch.Tensor, count: int) -> list[int]:
    """Positions of the ``count`` largest scores, ascending; of equal ones the first stay."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return sorted(order[:count].tolist())


def lost_importance(structure: Structure, scores: Scores, widths: Widths) -> float:
    """Importance of the groups that these widths remove."""
    lost = 0.0
    for dimension in structure:
        values = torch.sort(scores[dimension.name].double()).values
        lost += values[: len(values) - widths[dimension.kind]].sum().item()
    return lost


def _choose(structure: Structure, scores: Scores, ratio: float, candidates: list[Widths], allocation: str) -> Widths:
    """Pick widths by rule; of equally good ones, those with most heads."""
    if allocation == "uniform":
        exact = (1.0 - ratio) * structure.of_kind("heads")[0].num_groups
        return min(candidates, key=lambda widths: (abs(widths["heads"] - exact), -widths["heads"]))
    lost = [lost_importance(structure, scores, widths) for widths in candidates]
    bound = min(lost) * HEAD_MARGIN
    return max(
        (widths for widths, value in zip(candidates, lost, strict=True) if value <= bound),
        key=lambda widths: widths["heads"],
    )


def allocate(
    structure: Structure,
    plan: Plan,
    scores: Scores,
    ratio: float,
    legal: LegalWidths,
    allocation: str = "balanced",
    *,
    final_ratio: float | None = None,
) -> Plan:
    """Shrink a plan to a sparsity ratio: choose the widths, then keep the most important groups.

    Every cut looks ahead: first the widths of the finished model are chosen for ``final_ratio``, then widths on the
    way to them. Otherwise many small cuts would take channels alone, heads being too coarse for any of them.

    Args:
        structure: the model before pruning.
        plan: what is kept so far, with the same widths in every layer.
        scores: importance of the groups kept so far.
        ratio: removed parameters as a share of all prunable ones, counted from the unpruned model.
        legal: widths that may be chosen.
        allocation: ``uniform`` (every dimension loses the same share, as in the LoRAPrune paper) or ``balanced``
            (the split between attention and FFN that loses least importance for the same parameters; of splits
            within a tenth of the best, the one with most heads).
        final_ratio: where later cuts will end; None where this is the last one.

    Returns:
        A plan with the same widths in every layer. At the last cut its ratio is within half a channel multiple of
        the target, unless the plan was smaller already.
    """
    if plan.ratio(structure) >= ratio:
        return plan
    now = {kind: plan.counts(structure, kind)[0] for kind in structure.kinds}
    target = ratio if final_ratio is None else max(ratio, final_ratio)
    final = _choose(structure, scores, target, final_candidates(structure, now, target, legal), allocation)
    widths = final
    if target > ratio:
        on_the_way = step_candidates(structure, now, final, ratio, legal)
        widths = _choose(structure, scores, ratio, on_the_way, allocation)
    return plan.keep(
        {dimension.name: _kept_positions(scores[dimension.name], widths[dimension.kind]) for dimension in structure}
    )


def check_reachable(structure: Structure, ratio: float, legal: LegalWidths) -> None:
    """Make sure that the ratio can be met without emptying a dimension.

    Raises:
        ValueError: even the smallest widths keep too much, or the ratio falls between what two head counts can
            reach. The message says what can be reached.
    """
    dense = {kind: structure.of_kind(kind)[0].num_groups for kind in structure.kinds}
    nearest = final_candidates(structure, dense, ratio, legal)[0]
    wanted = (1.0 - ratio) * structure.prunable_parameters
    if abs(_kept_parameters(structure, nearest) - wanted) > _tolerance(structure, legal):
        smallest = {"heads": legal.head_groups[0], "channels": min(legal.channel_multiple, dense["channels"])}
        most = 1.0 - _kept_parameters(structure, smallest) / structure.prunable_parameters
        if ratio < most:
            reached = 1.0 - _kept_parameters(structure, nearest) / structure.prunable_parameters
            raise ValueError(
                f"No legal widths meet a ratio of {ratio:g}: one KV head more or less in every layer is more than the "
                f"whole FFN can make up for. The nearest ratio is {reached:.4f}; ask for that, or for another one."
            )
        raise ValueError(
            f"A ratio of {ratio:g} would empty a dimension: with at least {smallest['heads']} KV head(s) and "
            f"{smallest['channels']} channel(s) in every layer, at most {most:.4f} of the prunable parameters can "
            "go. Ask for less, or lower --channel-multiple."
        )


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
