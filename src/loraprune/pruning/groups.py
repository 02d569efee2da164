"""The step that every way to prune groups is made of: score, allocate, cut, remember."""

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
    """A cut that was made.

    Attributes:
        step: after which; 0 before training, or without.
        ratio: reached.
        widths: groups kept in each layer, by kind.
        stability: see :func:`loraprune.importance.stability.stability`; of the scores that the cut was decided by.
        errors: of each consumer that was repaired, in the order of the forward pass.
        seconds: that it took, with its repair.
    """

    step: int
    ratio: float
    widths: dict[str, list[int]]
    stability: dict[str, float] = field(default_factory=dict)
    errors: tuple[ConsumerError, ...] = ()
    seconds: float | None = field(default=None, compare=False)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CutRecord:
        """Read what ``asdict`` gave, also that of a version that knew less of a cut."""
        return cls(**{**value, "errors": tuple(ConsumerError(**error) for error in value.get("errors", ()))})


@dataclass
class Groups:
    """The groups of a model that is pruned: which are left, and how important each one was.

    Attributes:
        structure: of the model before any pruning.
        target: how much goes, and how that is spread.
        criterion: what scores the groups.
        plan: groups that are kept now.
        importance: last score of every group, also of those that are gone; shape ``(num_groups,)`` each.
        trials: widths that were tried, best first; those of the first one are aimed at.
    """

    structure: Structure
    target: Target
    criterion: CriterionConfig
    plan: Plan
    importance: Scores = field(default_factory=dict)
    trials: tuple[WidthTrial, ...] = ()

    @classmethod
    def all_of(cls, structure: Structure, target: Target, criterion: CriterionConfig) -> Groups:
        """Those of a model that is not pruned yet."""
        return cls(structure, target, criterion, Plan.full(structure))

    def legal_widths(self) -> LegalWidths:
        """Widths that the plan may have."""
        return self.target.legal_widths(self.structure)

    def allocated(self, scores: Scores, ratio: float) -> Plan:
        """The plan of a smaller model by the scores of the groups that are kept now."""
        allocation = self.target.allocation or "balanced"
        scores, scale = self.criterion.scaled(scores, allocation)
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
        """Note scores of the groups that a plan keeps (the present one) under the groups' first numbers."""
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
        """Cut a model to a ratio, in place: the widths and the groups that score lowest go.

        Args:
            model: at :attr:`plan`.
            scores: of the groups that are kept; None where the ratio alone says the widths, and the cut itself
                chooses the groups of each block (the hook ``choose``).
            ratio: removed share of the prunable parameters, counted from the model before any pruning.
            repair: of the consumers.
            calibration: for the repair; None or empty cuts without it.
            step: optimizer step after which the cut is made.
            tools: what is cut beside the model, and who listens.
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
    """What else a cut needs.

    Attributes:
        optimizer: its state shrinks with the parameters.
        masks: that are put on in place of a cut.
        hooks: what chooses, computes and listens; ``noted`` is the step's own.
    """

    optimizer: object | None = None
    masks: Masks | None = None
    hooks: CutHooks = field(default_factory=CutHooks)
