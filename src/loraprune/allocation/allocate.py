"""How a sparsity ratio is spread over the prunable dimensions of a model: the allocations with uniform widths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Literal, get_args

import torch

from loraprune.allocation.choices import Choice, choices, positions_of
from loraprune.allocation.global_allocation import allocate_globally, smallest_share
from loraprune.importance.moving_average import Scores
from loraprune.structure.dimensions import Structure
from loraprune.structure.kinds import check_ragged
from loraprune.structure.plan import Plan
from loraprune.structure.widths import LegalWidths, Widths, kept_in, widest

Allocation = Literal["balanced", "uniform", "global"]
ALLOCATIONS: tuple[str, ...] = get_args(Allocation)

HEAD_MARGIN = 1.1
"""``balanced`` gives up a KV head only where that loses clearly less importance. A head is a large step that no later
cut can make smaller or take back, and scores are noisy."""

NAMES = {
    "heads": "KV head(s)",
    "query_heads": "query head(s) of each KV head",
    "channels": "channel(s)",
    "experts": "expert(s)",
    "expert_channels": "channel(s) of each expert",
    "shared_channels": "channel(s) of the shared expert",
    "blocks": "block(s)",
    "hidden": "channel(s) of the hidden size",
}


def _kind_parameters(structure: Structure, kind: str, width: int, legal: LegalWidths) -> int:
    """Parameters of a kind that stay when the widest of its dimensions keeps ``width`` groups a stratum."""
    most, multiple = widest(structure, kind), legal.multiples.get(kind, 1)
    return sum(
        dimension.parameters_per_group
        * (
            dimension.num_groups
            if dimension.layer in structure.protected
            else kept_in(dimension, width, most, multiple)
        )
        for dimension in structure.of_kind(kind)
    )


def _kept_parameters(structure: Structure, widths: Widths, legal: LegalWidths) -> int:
    return sum(_kind_parameters(structure, kind, width, legal) for kind, width in widths.items())


def _step_parameters(structure: Structure, kind: str) -> float:
    """Parameters by which one group more a stratum in the widest dimension, and its share elsewhere, counts."""
    most = widest(structure, kind)
    return sum(d.parameters_per_group * d.num_groups / most for d in structure.open if d.kind == kind)


def _filler(structure: Structure, legal: LegalWidths) -> str | None:
    """The fine kind that makes up what the others cannot: the one with most parameters."""
    kinds = [kind for kind in legal.multiples if any(d.kind == kind for d in structure.open)]
    return max(kinds, key=lambda kind: _step_parameters(structure, kind) * widest(structure, kind), default=None)


def _tolerance(structure: Structure, legal: LegalWidths) -> float:
    """Half of the finest step, one channel multiple in every layer, in parameters."""
    filler = _filler(structure, legal)
    if filler is not None:
        return 0.5 * legal.multiples[filler] * _step_parameters(structure, filler) * (1 + 1e-9)
    return 0.5 * min(_step_parameters(structure, kind) for kind in legal.counts) * (1 + 1e-9)


def _beside(
    structure: Structure, coarse: Widths, wanted: float, now: Widths, legal: LegalWidths, least: Widths | None = None
) -> Widths:
    """Legal widths of the fine kinds that together with ``coarse`` come nearest to ``wanted`` parameters.

    All fine kinds keep about the same share; the largest one fills up. ``least`` bounds them from below.
    """
    widths = dict(coarse)
    left = wanted - _kept_parameters(structure, coarse, legal)
    fine = [kind for kind in structure.kinds if kind in legal.multiples]
    full = sum(_kind_parameters(structure, kind, widest(structure, kind), legal) for kind in fine)
    filler = _filler(structure, legal)
    for kind in sorted(fine, key=lambda kind: kind == filler):
        multiple = legal.multiples[kind]
        if kind == filler:
            fixed = _kind_parameters(structure, kind, widest(structure, kind), legal)
            fixed_part = fixed - _step_parameters(structure, kind) * widest(structure, kind)
            exact = (left - fixed_part) / _step_parameters(structure, kind)
        else:
            exact = max(left, 0.0) / full * widest(structure, kind)
        width = min(max(round(exact / multiple), 1) * multiple, now[kind])
        widths[kind] = max(width, least[kind]) if least else width
        if kind != filler:
            left -= _kind_parameters(structure, kind, widths[kind], legal)
            full -= _kind_parameters(structure, kind, widest(structure, kind), legal)
    return widths


def _coarse(legal: LegalWidths, now: Widths, least: Widths | None = None) -> list[Widths]:
    """All combinations of legal head counts (and expert counts) between ``least`` and ``now``."""
    kinds = list(legal.counts)
    options = [
        [count for count in legal.counts[kind] if (least[kind] if least else 0) <= count <= now[kind]] or [now[kind]]
        for kind in kinds
    ]
    return [dict(zip(kinds, counts, strict=True)) for counts in product(*options)]


def final_candidates(structure: Structure, now: Widths, ratio: float, legal: LegalWidths) -> list[Widths]:
    """Legal widths, no larger than those of ``now``, that meet a ratio.

    All that meet it to half a channel multiple; where there are none, those that come nearest.
    """
    wanted = (1.0 - ratio) * structure.prunable_parameters
    found = [_beside(structure, coarse, wanted, now, legal) for coarse in _coarse(legal, now)]
    errors = [abs(_kept_parameters(structure, widths, legal) - wanted) for widths in found]
    close = [widths for widths, error in zip(found, errors, strict=True) if error <= _tolerance(structure, legal)]
    return close or [found[errors.index(min(errors))]]


def step_candidates(structure: Structure, now: Widths, final: Widths, ratio: float, legal: LegalWidths) -> list[Widths]:
    """Widths on the way from ``now`` to ``final`` that remove at least a ratio, and little more.

    Heads go in coarse steps, so that widths on the way may have to remove more than the ratio: what the channels
    have given up already does not come back.
    """
    wanted = (1.0 - ratio) * structure.prunable_parameters
    found = [_beside(structure, coarse, wanted, now, legal, final) for coarse in _coarse(legal, now, final)]
    far_enough = wanted + _tolerance(structure, legal)
    return [widths for widths in found if _kept_parameters(structure, widths, legal) <= far_enough] or [final]


def _count(choice: Choice, structure: Structure, widths: Widths, legal: LegalWidths) -> int:
    """Groups that each stratum of a choice keeps, never more than there are."""
    dimension = choice.dimension
    kind = dimension.kind
    kept = kept_in(dimension, widths[kind], widest(structure, kind), legal.multiples.get(kind, 1))
    return min(kept // dimension.strata, choice.scores.shape[1])


def _share_kept(structure: Structure, legal: LegalWidths, widths: Widths) -> float:
    return sum(widths[kind] / widest(structure, kind) for kind in legal.counts)


def _choose(
    structure: Structure, scores: Scores, ratio: float, candidates: list[Widths], allocation: str, legal: LegalWidths
) -> Widths:
    """Pick widths by rule; of equally good ones, those with most heads."""
    if allocation == "uniform":
        # The ratio is one of all layers: where some keep everything, the others lose more.
        share = ratio * structure.prunable_parameters / sum(dimension.num_parameters for dimension in structure.open)

        def off(widths: Widths) -> float:
            exact = {kind: max(1.0 - share, 0.0) * widest(structure, kind) for kind in legal.counts}
            return sum(abs(widths[kind] - exact[kind]) / widest(structure, kind) for kind in legal.counts)

        return min(candidates, key=lambda widths: (off(widths), -_share_kept(structure, legal, widths)))
    tables = [(choice, choice.losses()) for choice in choices(structure, scores)]
    lost = [sum(losses[_count(choice, structure, widths, legal)] for choice, losses in tables) for widths in candidates]
    bound = min(lost) * HEAD_MARGIN
    return max(
        (widths for widths, value in zip(candidates, lost, strict=True) if value <= bound),
        key=lambda widths: _share_kept(structure, legal, widths),
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
    """Scores in which those of protected blocks are beyond all others, where whole blocks go."""
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
    comparable: bool = True,
    ranked: bool = False,
) -> Plan:
    """Shrink a plan to a sparsity ratio: choose the widths, then keep the most important groups.

    Every cut looks ahead: first the widths of the finished model are chosen for ``final_ratio``, then widths on the
    way to them. Otherwise many small cuts would take channels alone, heads being too coarse for any of them.

    Args:
        structure: the model before pruning.
        plan: what is kept so far.
        scores: importance of the groups kept so far.
        ratio: removed parameters as a share of all prunable ones, counted from the unpruned model.
        legal: widths that may be chosen.
        allocation: ``uniform`` (every dimension loses the same share, as in the LoRAPrune paper), ``balanced``
            (the split between attention and FFN that loses least importance for the same parameters; of splits
            within a tenth of the best, the one with most heads) or ``global`` (see
            :mod:`loraprune.allocation.global_allocation`: widths differ from layer to layer).
        final_ratio: where later cuts will end; None where this is the last one.
        comparable: scores of different kinds of groups have the same unit; matters to ``global`` only.
        ranked: scores were put on one scale before, and groups go in the order of their scores; likewise.

    Returns:
        A plan with the same widths in every layer that may shrink (not so ``global``). At the last cut its ratio is
        within half a channel multiple of the target, unless the plan was smaller already.
    """
    if plan.ratio(structure) >= ratio:
        return plan
    if allocation == "global" and not structure.spans_blocks:
        return allocate_globally(structure, plan, scores, ratio, legal, comparable=comparable, ranked=ranked)
    scores = _protecting(structure, plan, scores)
    now = _widths_of(structure, plan)
    target = ratio if final_ratio is None else max(ratio, final_ratio)
    final = _choose(structure, scores, target, final_candidates(structure, now, target, legal), allocation, legal)
    widths = final
    if target > ratio:
        on_the_way = step_candidates(structure, now, final, ratio, legal)
        widths = _choose(structure, scores, ratio, on_the_way, allocation, legal)
    kept: dict[str, Sequence[int]] = {}
    for choice in choices(structure, scores):
        kept |= positions_of(choice, choice.kept(_count(choice, structure, widths, legal)))
    return plan.keep(kept)


def check_reachable(structure: Structure, ratio: float, legal: LegalWidths, allocation: str = "balanced") -> None:
    """Make sure that the ratio can be met without emptying a dimension.

    Raises:
        ValueError: widths would differ and cannot; even the smallest widths keep too much; or the ratio falls
            between what two head counts can reach. The message says what can be reached.
    """
    if allocation == "global" and not structure.spans_blocks:
        check_ragged(structure, "Widths cannot differ from layer to layer")
        most = 1.0 - smallest_share(structure, legal)
        if ratio > most:
            raise ValueError(
                f"A ratio of {ratio:g} would empty a dimension: every layer keeps some of its groups, so that at most "
                f"{most:.4f} of the prunable parameters can go. Ask for less."
            )
        return
    dense = {kind: widest(structure, kind) for kind in structure.kinds}
    nearest = final_candidates(structure, dense, ratio, legal)[0]
    wanted = (1.0 - ratio) * structure.prunable_parameters
    if abs(_kept_parameters(structure, nearest, legal) - wanted) > _tolerance(structure, legal):
        smallest = {
            kind: legal.counts[kind][0] if kind in legal.counts else min(legal.multiples[kind], dense[kind])
            for kind in structure.kinds
        }
        most = 1.0 - _kept_parameters(structure, smallest, legal) / structure.prunable_parameters
        if ratio < most:
            reached = 1.0 - _kept_parameters(structure, nearest, legal) / structure.prunable_parameters
            raise ValueError(
                f"No legal widths meet a ratio of {ratio:g}: one KV head more or less in every layer is more than the "
                f"whole FFN can make up for. The nearest ratio is {reached:.4f}; ask for that, or for another one."
            )
        least = " and ".join(f"{width} {NAMES.get(kind, kind)}" for kind, width in smallest.items())
        if structure.spans_blocks:
            raise ValueError(
                f"A ratio of {ratio:g} removes too much: with at least {least}, at most {most:.4f} of the parameters "
                "can go. Ask for less."
            )
        raise ValueError(
            f"A ratio of {ratio:g} would empty a dimension: with at least {least} in every layer"
            f"{' that may shrink' if structure.protected else ''}, at most {most:.4f} of the prunable parameters can "
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
