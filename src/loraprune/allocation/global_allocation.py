"""The allocation ``global``: groups of all layers compete, and widths differ from layer to layer."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from loraprune.allocation.choices import Choice, choices, positions_of
from loraprune.importance.criterion_config import Scale
from loraprune.importance.moving_average import Scores
from loraprune.structure.dimensions import PrunableDimension, Structure
from loraprune.structure.plan import Plan
from loraprune.structure.widths import LegalWidths

FLOOR = 0.1
"""Smallest share of its groups that every dimension keeps. Layers without heads or channels are not supported, and
scores taken on the dense model say little about a layer that has lost nearly everything."""


def floor_of(dimension: PrunableDimension, multiple: int) -> int:
    """Smallest number of groups that each stratum of a dimension keeps; channels keep a multiple of ``multiple``."""
    least = max(math.ceil(FLOOR * dimension.per_stratum / multiple) * multiple, dimension.floor, 1)
    return min(least, dimension.per_stratum)


def smallest_share(structure: Structure, legal: LegalWidths) -> float:
    """Share of the prunable parameters that remains when every dimension is at its floor."""
    kept = 0
    for dimension in structure:
        multiple = legal.multiples.get(dimension.kind, 1)
        protected = dimension.layer in structure.protected
        each = dimension.per_stratum if protected else floor_of(dimension, multiple)
        kept += each * dimension.strata * dimension.parameters_per_group
    return kept / structure.prunable_parameters


class _Ladder:
    """Steps that shrink one choice, least important groups first, with the cost and the parameters of each step."""

    def __init__(self, choice: Choice, multiple: int, scale: Scale) -> None:
        self.choice = choice
        self.count = choice.scores.shape[1]
        self._floor = floor_of(choice.dimension, multiple)
        self._multiple = multiple
        self._losses = choice.losses()
        per_group = choice.parameters_per_step
        if scale == "rank":
            self._unit = float(len(choice.dimensions) * choice.scores.shape[0])
        elif scale == "loss":
            self._unit = float(per_group)
        else:
            self._unit = max(float(choice.scores.double().sum()) / self.count, 1e-300)
        self._per_group = per_group

    def next_count(self) -> int | None:
        """Groups per stratum after the next step; None at the floor."""
        after = (self.count - 1) // self._multiple * self._multiple
        return after if after >= self._floor else None

    def price(self) -> float | None:
        """Importance that the next step loses per parameter that it removes."""
        after = self.next_count()
        if after is None:
            return None
        return (self._losses[after] - self._losses[self.count]) / ((self.count - after) * self._unit)

    def freed(self) -> int:
        """Number of parameters that the next step removes."""
        after = self.next_count()
        return 0 if after is None else (self.count - after) * self._per_group

    def step(self) -> int:
        """Take the next step and return the number of parameters that it removes."""
        freed, after = self.freed(), self.next_count()
        assert after is not None
        self.count = after
        return freed


def allocate_globally(
    structure: Structure,
    plan: Plan,
    scores: Scores,
    ratio: float,
    legal: LegalWidths,
    *,
    scale: Scale,
) -> Plan:
    """Remove the groups that lose least importance per parameter, in any layer.

    Heads and channels compete by **importance per parameter**. With ``fisher``, ``lora`` and ``taylor``, the scores of
    both estimate a change of the loss and are compared directly, as are the probabilities of ``compresso``. Scores
    without such a unit (``magnitude``, ``wanda``, ``flap``, ``random``) are first divided by the mean of their
    dimension, so only the order within a dimension counts. Scores on the scale ``rank`` (FLAP's, standardized within
    each dimension) order the groups directly; a step of several groups counts with their mean.

    Every dimension keeps a tenth of its groups (:data:`FLOOR`). Widths of fine kinds are multiples from ``legal``. A
    step that would exceed the ratio is skipped as long as finer steps can reach it.
    """
    wanted = ratio * structure.prunable_parameters - plan.removed_parameters(structure)
    ladders = [
        _Ladder(choice, legal.multiples.get(choice.dimension.kind, 1), scale) for choice in choices(structure, scores)
    ]
    queue = [(price, index) for index, ladder in enumerate(ladders) if (price := ladder.price()) is not None]
    heapq.heapify(queue)
    half_step = 0.5 * min((ladder.freed() for ladder in ladders if ladder.next_count() is not None), default=0)
    too_far: list[_Ladder] = []
    while queue and wanted > half_step:
        _, index = heapq.heappop(queue)
        ladder = ladders[index]
        if ladder.freed() > wanted + half_step:
            too_far.append(ladder)
            continue
        wanted -= ladder.step()
        price = ladder.price()
        if price is not None:
            heapq.heappush(queue, (price, index))
    if wanted > half_step and too_far:  # no finer steps are left
        nearest = min(too_far, key=lambda ladder: abs(wanted - ladder.freed()))
        if abs(wanted - nearest.freed()) < wanted:
            nearest.step()
    kept: dict[str, Sequence[int]] = {}
    for ladder in ladders:
        if ladder.count < ladder.choice.scores.shape[1]:
            kept |= positions_of(ladder.choice, ladder.choice.kept(ladder.count))
    return plan.keep(kept)
