"""Agreement of criteria on the groups to remove: the share of removed groups that two of them have in common."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from loraprune.allocation.allocate import allocate
from loraprune.importance.criterion_config import CriterionConfig
from loraprune.importance.moving_average import Scores
from loraprune.structure.dimensions import Structure
from loraprune.structure.plan import Plan
from loraprune.structure.widths import LegalWidths


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of two criteria on one kind of dimension at one sparsity ratio.

    Attributes:
        first: name of a criterion; ``second``: name of the other.
        kind: kind of the dimensions: ``heads``, ``channels`` and so on.
        ratio: sparsity ratio of both.
        shared: mean over the layers of :func:`overlap`; None if neither removes a group of this kind.
        by_chance: same mean for groups drawn at random, as many in each layer.
        layers: number of layers in the mean: those in which one of the two removes something.
    """

    first: str
    second: str
    kind: str
    ratio: float
    shared: float | None
    by_chance: float | None
    layers: int


def overlap(first: Collection[int], second: Collection[int]) -> float:
    """``|A ∩ B|`` as a share of ``(|A| + |B|) / 2``, the mean number of removed groups."""
    return 2.0 * len(set(first) & set(second)) / (len(first) + len(second))


def overlap_by_chance(first: int, second: int, groups: int) -> float:
    """Expected :func:`overlap` of ``first`` and ``second`` groups drawn at random from ``groups``.

    On average, ``first · second / groups`` groups are in both. If the two numbers are equal, the overlap is the share
    of groups removed. Strata (the query heads of each KV head) lose equally many groups and do not change the result.
    """
    return 2.0 * first * second / groups / (first + second)


def _removed(structure: Structure, plan: Plan) -> dict[str, set[int]]:
    return {d.name: set(range(d.num_groups)) - set(plan.kept[d.name]) for d in structure}


def _agreement(
    structure: Structure, names: tuple[str, str], removed: Mapping[str, Mapping[str, set[int]]], kind: str, ratio: float
) -> Agreement:
    """Agreement of two criteria, from the groups that each removes in every dimension."""
    first, second = (removed[name] for name in names)
    counted = [d for d in structure.of_kind(kind) if first[d.name] or second[d.name]]
    shared = [overlap(first[d.name], second[d.name]) for d in counted]
    chance = [overlap_by_chance(len(first[d.name]), len(second[d.name]), d.num_groups) for d in counted]
    return Agreement(
        first=names[0],
        second=names[1],
        kind=kind,
        ratio=ratio,
        shared=sum(shared) / len(counted) if counted else None,
        by_chance=sum(chance) / len(counted) if counted else None,
        layers=len(counted),
    )


def agreements(
    structure: Structure,
    scores: Mapping[str, Scores],
    ratios: Sequence[float],
    legal: LegalWidths,
    allocation: str = "uniform",
    *,
    criteria: Mapping[str, CriterionConfig],
) -> list[Agreement]:
    """Agreement of all pairs of criteria, by kind of dimension and ratio.

    Args:
        structure: structure of the unpruned model.
        scores: scores of all groups, by name of the criterion.
        ratios: sparsity ratios; each is reached from the unpruned model in one cut.
        legal: widths that may be chosen.
        allocation: ``uniform`` removes the same number of groups whichever criterion chooses them, so the criteria
            differ only in which groups they remove.
        criteria: configurations by name.

    Returns:
        Agreements ordered by pair (those of the first criterion first), kind and ratio.

    Source: LoRAPrune (arXiv 2305.18403), its ablation of masks from LoRA-guided and from vanilla gradients.
    """
    full = Plan.full(structure)

    def allocated(name: str, values: Scores, ratio: float) -> Plan:
        values, scale = criteria[name].scaled(values, allocation, structure)
        return allocate(structure, full, values, ratio, legal, allocation, scale=scale)

    removed = {
        ratio: {name: _removed(structure, allocated(name, values, ratio)) for name, values in scores.items()}
        for ratio in ratios
    }
    return [
        _agreement(structure, names, removed[ratio], kind, ratio)
        for names in combinations(scores, 2)
        for kind in structure.kinds
        for ratio in ratios
    ]
