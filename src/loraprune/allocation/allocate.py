"""Distribution of a sparsity ratio over the prunable dimensions of a model: the allocations with uniform widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from loraprune.allocation.choices import Choice, choices, positions_of
from loraprune.allocation.global_allocation import allocate_globally, smallest_share
from loraprune.allocation.target import BY_SCORES
from loraprune.importance.criterion_config import Scale
from loraprune.importance.moving_average import Scores
from loraprune.options.field import check_choice
from loraprune.structure.dimensions import Structure
from loraprune.structure.kinds import check_ragged
from loraprune.structure.matching_widths import (
    check_widths_meet,
    final_candidates,
    most_even,
    share_of_coarse_groups,
    step_candidates,
)
from loraprune.structure.plan import Plan
from loraprune.structure.widths import (
    HEAD_COUNTS,
    HeadCounts,
    LegalWidths,
    Widths,
    check_ratio,
    kept_in,
    legal_widths,
    widest,
)

HEAD_MARGIN = 1.1
"""``balanced`` removes a KV head only if that loses clearly less importance. A head is a large step that no later
cut can make smaller or undo, and scores are noisy."""


def _count(choice: Choice, structure: Structure, widths: Widths, legal: LegalWidths) -> int:
    """Number of groups that each stratum of a choice keeps, at most the current number."""
    dimension = choice.dimension
    kind = dimension.kind
    kept = kept_in(dimension, widths[kind], widest(structure, kind), legal.multiples.get(kind, 1))
    return min(kept // dimension.strata, choice.scores.shape[1])


def _choose(
    structure: Structure, scores: Scores, ratio: float, candidates: list[Widths], allocation: str, legal: LegalWidths
) -> Widths:
    """Choose widths by the allocation; among equally good ones, those with the most heads."""
    if allocation in ("uniform", "measured"):
        return most_even(structure, candidates, ratio, legal)
    tables = [(choice, choice.losses()) for choice in choices(structure, scores)]
    lost = [sum(losses[_count(choice, structure, widths, legal)] for choice, losses in tables) for widths in candidates]
    bound = min(lost) * HEAD_MARGIN
    return max(
        (widths for widths, value in zip(candidates, lost, strict=True) if value <= bound),
        key=lambda widths: share_of_coarse_groups(structure, legal, widths),
    )


def _widths_of(structure: Structure, plan: Plan) -> Widths:
    """Widths of a plan with the same widths in every layer that may shrink."""
    return {
        kind: max(
            (
                plan.count(dimension.name) // dimension.strata
                for dimension in structure.of_kind(kind)
                if dimension.layer not in structure.protected and dimension.per_stratum == widest(structure, kind)
            ),
            default=widest(structure, kind),
        )
        for kind in structure.kinds
    }


def _protecting(structure: Structure, plan: Plan, scores: Scores) -> Scores:
    """Scores in which protected blocks outrank all others, if whole blocks are pruned."""
    protected = dict(scores)
    for dimension in structure.of_kind("blocks"):
        stays = torch.tensor([block in structure.protected for block in plan.kept[dimension.name]])
        values = scores[dimension.name]
        protected[dimension.name] = values.masked_fill(stays.to(values.device), float("inf"))
    return protected


def allocate(
    structure: Structure,
    plan: Plan,
    scores: Scores,
    ratio: float,
    legal: LegalWidths,
    allocation: str = "balanced",
    *,
    final_ratio: float | None = None,
    final_widths: Widths | None = None,
    scale: Scale = "loss",
) -> Plan:
    """Shrink a plan to a sparsity ratio: choose the widths, then keep the most important groups.

    Every cut looks ahead: it first chooses the widths of the final model for ``final_ratio``, then widths on the way
    to them. Otherwise a series of small cuts would remove only channels, because one head is too much for each of them.

    Args:
        structure: structure of the model before pruning.
        plan: what is kept so far.
        scores: importance of the groups kept so far.
        ratio: removed parameters as a share of all prunable ones, counted from the unpruned model.
        legal: widths that may be chosen.
        allocation: ``uniform`` (every dimension loses the same share, as in the LoRAPrune paper), ``balanced``
            (the split between attention and FFN that loses least importance for the same parameters; among splits
            within a tenth of the best, the one with the most heads) or ``global`` (see
            :mod:`loraprune.allocation.global_allocation`: widths differ from layer to layer).
        final_ratio: ratio after all later cuts; None if this is the last one.
        final_widths: widths of the final model, if known; None chooses them by the allocation. ``measured`` has to
            try widths, so with None it uses those of ``uniform``.
        scale: scale of the scores; only ``global`` uses it.

    Returns:
        A plan with the same widths in every layer that may shrink (except with ``global``). At the last cut its ratio
        is within half a channel multiple of the target, unless the plan was already smaller.
    """
    if plan.ratio(structure) >= ratio:
        return plan
    if allocation == "global" and not structure.spans_blocks:
        return allocate_globally(structure, plan, scores, ratio, legal, scale=scale)
    scores = _protecting(structure, plan, scores)
    now = _widths_of(structure, plan)
    target = ratio if final_ratio is None else max(ratio, final_ratio)
    final = final_widths
    if final is None:
        final = _choose(structure, scores, target, final_candidates(structure, now, target, legal), allocation, legal)
    widths = final
    if target > ratio:
        on_the_way = step_candidates(structure, now, final, ratio, legal)
        widths = _choose(structure, scores, ratio, on_the_way, allocation, legal)
    kept: dict[str, Sequence[int]] = {}
    for choice in choices(structure, scores):
        kept |= positions_of(choice, choice.kept(_count(choice, structure, widths, legal)))
    return plan.keep(kept)


def plan_for(
    structure: Structure,
    scores: Mapping[str, torch.Tensor | Sequence[float]],
    ratio: float,
    *,
    allocation: str = "uniform",
    channel_multiple: int | None = None,
    head_counts: HeadCounts = "config",
) -> Plan:
    """Return the plan that keeps the most important groups by your own scores.

    Example::

        structure = describe(model)
        scores = {dimension.name: my_scores(model, dimension) for dimension in structure}
        cut_(model, plan_for(structure, scores, 0.3), calibration=rows)

    Args:
        structure: structure from :func:`loraprune.describe`.
        scores: importance of every group: ``num_groups`` numbers by name of the dimension; groups with higher scores
            are kept.
        ratio: share of the prunable parameters to remove, in [0, 1).
        allocation: ``uniform`` (heads and channels lose the same share, so scores of different kinds need not have the
            same unit), ``balanced`` or ``global``; see :func:`allocate`. The last two add and compare scores of
            different kinds, which must then have the same unit, such as a change of the loss.
        channel_multiple: multiple that FFN widths are rounded to; None chooses by size.
        head_counts: ``config`` allows only head counts that the model's own config accepts, ``any`` allows all.

    Raises:
        ValueError: scores are missing, too many or too few, or not finite; or no legal widths meet the ratio.
    """
    check_ratio(ratio)
    check_choice("allocation", allocation, BY_SCORES)
    check_choice("head_counts", head_counts, HEAD_COUNTS)
    known = _checked_scores(structure, scores)
    free: HeadCounts = "any" if allocation == "global" else head_counts
    legal = legal_widths(structure, channel_multiple=channel_multiple, head_counts=free)
    check_reachable(structure, ratio, legal, allocation)
    return allocate(structure, Plan.full(structure), known, ratio, legal, allocation)


def _checked_scores(structure: Structure, scores: Mapping[str, torch.Tensor | Sequence[float]]) -> Scores:
    """Scores as tensors, one number per group."""
    odd = set(scores) ^ {dimension.name for dimension in structure}
    if odd:
        first = sorted(odd)[0]
        what = f"Scores are missing for {first}" if first not in scores else f"The structure has no dimension {first!r}"
        raise ValueError(f"{what}. Pass scores for every dimension of the structure, and for no others.")
    known: Scores = {}
    for dimension in structure:
        values = torch.as_tensor(scores[dimension.name]).detach()
        if tuple(values.shape) != (dimension.num_groups,):
            raise ValueError(
                f"The scores of {dimension.name} have shape {tuple(values.shape)}, but it has {dimension.num_groups} "
                f"groups. Pass a tensor of shape ({dimension.num_groups},)."
            )
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"The scores of {dimension.name} are not all finite.")
        known[dimension.name] = values
    return known


def check_reachable(structure: Structure, ratio: float, legal: LegalWidths, allocation: str = "balanced") -> None:
    """Check that the ratio can be reached without emptying a dimension.

    Raises:
        ValueError: widths would have to differ between layers and cannot; even the smallest widths keep too much; or
            the ratio lies between two reachable head counts. The message says what can be reached.
    """
    if allocation == "global" and not structure.spans_blocks:
        check_ragged(structure, "Widths cannot differ from layer to layer")
        most = 1.0 - smallest_share(structure, legal)
        if ratio > most:
            raise ValueError(
                f"A ratio of {ratio:g} would empty a dimension: every layer keeps some of its groups, so at most "
                f"{most:.4f} of the prunable parameters can be removed. Choose a smaller ratio."
            )
        return
    check_widths_meet(structure, ratio, legal)


def ratio_for_parameters(structure: Structure, target: int) -> float:
    """Return the sparsity ratio that leaves the whole model with ``target`` parameters.

    Raises:
        ValueError: the target is not below the model's size, or is below what pruning cannot remove.
    """
    fixed = structure.num_parameters - structure.prunable_parameters
    if not fixed < target < structure.num_parameters:
        raise ValueError(
            f"A target of {target:,} parameters cannot be met: the model has {structure.num_parameters:,}, and "
            f"{fixed:,} of them (embeddings, norms, head) cannot be pruned."
        )
    return (structure.num_parameters - target) / structure.prunable_parameters
