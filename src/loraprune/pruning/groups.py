"""One cut of groups, as every recipe makes it: score, allocate, cut, remember."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from loraprune.allocation.allocate import allocate
from loraprune.allocation.measured_widths import WidthTrial
from loraprune.allocation.target import Target
from loraprune.importance.moving_average import Scores
from loraprune.importance.stability import stability
from loraprune.processes.ranks import from_main
from loraprune.structure.plan import Plan
from loraprune.surgery.output_error import ConsumerError
from loraprune.surgery.refit import CutHooks, cut_and_repair_

if TYPE_CHECKING:
    from torch import nn

    from loraprune.calibration.block_by_block import Calibration
    from loraprune.importance.criterion_config import CriterionConfig
    from loraprune.structure.dimensions import Structure
    from loraprune.structure.widths import LegalWidths
    from loraprune.surgery.masking import Masks
    from loraprune.surgery.repairs import Repair


@dataclass(frozen=True)
class CutRecord:
    """A finished cut.

    Attributes:
        step: optimizer step before the cut; 0 before or without training.
        ratio: ratio reached.
        widths: number of groups kept in each layer, by kind.
        stability: stability of the scores behind the cut; see :func:`loraprune.importance.stability.stability`.
        errors: errors of each repaired consumer, in the order of the forward pass.
        seconds: duration of cut and repair.
    """

    step: int
    ratio: float
    widths: dict[str, list[int]]
    stability: dict[str, float] = field(default_factory=dict)
    errors: tuple[ConsumerError, ...] = ()
    seconds: float | None = field(default=None, compare=False)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CutRecord:
        """Read the output of ``asdict``, also from older versions with fewer fields."""
        return cls(**{**value, "errors": tuple(ConsumerError(**error) for error in value.get("errors", ()))})


@dataclass
class Groups:
    """The remaining groups of a model and their last scores.

    Attributes:
        structure: structure of the model before any pruning.
        target: amount to prune, and its spread.
        criterion: criterion that scores the groups.
        plan: current groups.
        importance: last score of every group, with removed ones; shape ``(num_groups,)`` each.
        trials: tried widths, best first; the cuts aim at those of the first.
    """

    structure: Structure
    target: Target
    criterion: CriterionConfig
    plan: Plan
    importance: Scores = field(default_factory=dict)
    trials: tuple[WidthTrial, ...] = ()

    @classmethod
    def all_of(cls, structure: Structure, target: Target, criterion: CriterionConfig) -> Groups:
        """Return all groups of an unpruned model."""
        return cls(structure, target, criterion, Plan.full(structure))

    def legal_widths(self) -> LegalWidths:
        """Return the widths that the plan may have."""
        return self.target.legal_widths(self.structure)

    def allocated(self, scores: Scores, ratio: float) -> Plan:
        """Return the plan of a smaller model by the scores of the current groups."""
        allocation = self.target.allocation or "balanced"
        scores, scale = self.criterion.scaled(scores, allocation, self.structure)
        return allocate(
            self.structure,
            self.plan,
            scores,
            ratio,
            self.legal_widths(),
            allocation,
            final_ratio=self.target.ratio,
            final_widths=dict(self.trials[0].widths) if self.trials else None,
            scale=scale,
        )

    def remember(self, scores: Scores, plan: Plan | None = None) -> None:
        """Store the scores of a plan's groups (by default, of the current plan) under their numbers before pruning."""
        kept = (plan or self.plan).kept
        for dimension in self.structure:
            if dimension.name in scores:
                known = self.importance.setdefault(dimension.name, torch.full((dimension.num_groups,), float("nan")))
                known[list(kept[dimension.name])] = scores[dimension.name].float().cpu()

    def cut_(
        self,
        model: nn.Module,
        scores: Scores | None,
        ratio: float,
        *,
        repair: Repair,
        calibration: Calibration | None,
        step: int = 0,
        tools: CutTools | None = None,
    ) -> CutRecord:
        """Cut a model to a ratio, in place: the groups with the lowest scores are removed.

        Args:
            model: model at :attr:`plan`.
            scores: scores of the current groups. None if the widths follow from the ratio and the cut itself
                chooses the groups of each block (the hook ``choose``).
            ratio: removed share of the prunable parameters of the unpruned model.
            repair: repair of the consumers.
            calibration: data for the repair; None or empty cuts without a repair.
            step: optimizer step before the cut.
            tools: optimizer or masks to cut with the model, and hooks.
        """
        started, tools = time.monotonic(), tools or CutTools()
        stable: dict[str, float] = {}
        if scores is not None:
            stable = stability(self.structure, self.plan.kept, self.importance, scores)
            self.remember(scores)
        after = from_main(lambda: self.allocated(scores or self._equal_scores(), ratio))
        errors: list[ConsumerError] = []
        if tools.masks is not None:
            tools.masks.apply(after)
            self.plan = after
        else:
            self.plan = cut_and_repair_(
                model,
                self.structure,
                self.plan,
                after,
                calibration=calibration or None,
                repair=repair,
                optimizer=tools.optimizer,
                hooks=replace(tools.hooks, noted=errors.append),
            )
        widths = {kind: list(self.plan.counts(self.structure, kind)) for kind in self.structure.kinds}
        reached = self.plan.ratio(self.structure)
        return CutRecord(step, reached, widths, stable, tuple(errors), time.monotonic() - started)

    def _equal_scores(self) -> Scores:
        return {dimension.name: torch.ones(self.plan.count(dimension.name)) for dimension in self.structure}


@dataclass(frozen=True, kw_only=True)
class CutTools:
    """Further inputs of a cut.

    Attributes:
        optimizer: optimizer whose state is cut with the parameters.
        masks: masks to apply instead of a cut.
        hooks: hooks of the cut; ``noted`` is replaced.
    """

    optimizer: object | None = None
    masks: Masks | None = None
    hooks: CutHooks = field(default_factory=CutHooks)
