"""The course of pruning through a run: which cut comes next, what the averages are, what was done so far."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from loraprune.allocation.allocate import allocate, check_reachable
from loraprune.allocation.schedule import ScheduledCut, cut_schedule
from loraprune.calibration.block_by_block import Calibration
from loraprune.importance.criterion import (
    READ_EFFECTIVE_WEIGHTS,
    CriterionOptions,
    LearnedCriterion,
    check_reach,
    check_scores,
)
from loraprune.importance.flap import standardized
from loraprune.importance.moving_average import MovingAverage, Scores, averaged, selected, updated
from loraprune.importance.registry import make_criterion
from loraprune.importance.stability import stability
from loraprune.importance.whole_blocks import for_structure, tell_micro_batches
from loraprune.layers.axes import axis_length
from loraprune.layers.lora import check_tied_adapters, has_variant
from loraprune.layers.quantized import is_quantized_model, prepare_
from loraprune.layers.unwrap import base_model
from loraprune.pruning.phase_timer import PhaseTimer
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Structure
from loraprune.structure.plan import Plan
from loraprune.structure.widths import LegalWidths, legal_widths
from loraprune.surgery.bias import give_biases_
from loraprune.surgery.masking import Masks
from loraprune.surgery.output_error import ConsumerError
from loraprune.surgery.refit import cut_and_repair_, fold_gates_
from loraprune.surgery.slicing import slice_

if TYPE_CHECKING:
    from torch import nn

    from loraprune.pruning.config import PruningConfig


@dataclass(frozen=True)
class CutRecord:
    """A cut that was made.

    Attributes:
        step: after which.
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
class PruningRun:
    """Everything that pruning knows during a run; :mod:`loraprune.pruning.resume` saves what has to survive a stop.

    Attributes:
        config: what was asked for.
        structure: of the model before any pruning.
        plan: groups that are kept now.
        average: moving average of the scores, over the groups that are kept now.
        records: cuts that were made.
        total_steps: optimizer steps of the whole run; 0 before it begins.
        importance: last score of every group, also of those that are gone; shape ``(num_groups,)`` each.
        learned: what a criterion that learns had learnt when the run was interrupted.
        phases: what the time was spent on.
        micro_batches: backward passes in an optimizer step, where that is known.
    """

    config: PruningConfig
    structure: Structure
    plan: Plan
    average: MovingAverage = field(default_factory=MovingAverage)
    records: list[CutRecord] = field(default_factory=list)
    importance: Scores = field(default_factory=dict)
    total_steps: int = 0
    learned: dict[str, torch.Tensor] = field(default_factory=dict)
    phases: PhaseTimer = field(default_factory=PhaseTimer)

    def __post_init__(self) -> None:
        self._model: nn.Module | None = None
        self._masks: Masks | None = None
        self._calibration: Calibration | None = None
        self._attached = False
        self.micro_batches: int | None = None
        self.schedule: list[ScheduledCut] = []
        # What is all cut before the first step is scored there.
        options = CriterionOptions() if self.config.cuts_first else self.config.criterion_options
        self.criterion = for_structure(make_criterion(options), options.name, self.structure)

    @classmethod
    def of(cls, model: nn.Module, config: PruningConfig) -> PruningRun:
        """A run that has not begun, for a model that is not pruned yet.

        Raises:
            ValueError: the model cannot be pruned, or not by that ratio.
        """
        prepare_(model)
        structure = describe(model, config.dimensions, config.keep_layers)
        check_reach(config.criterion_name, structure, lora_form=config.lora_form, while_training=not config.cuts_first)
        run = cls(config=config, structure=structure, plan=Plan.full(structure))
        if config.ratio > 0.0:
            check_reachable(structure, config.ratio, run.legal_widths(), config.allocation)
            if run.refits and config.repair == "bias":
                give_biases_(model, structure)
        return run

    def legal_widths(self) -> LegalWidths:
        """Widths that the plan may have."""
        return legal_widths(
            self.structure,
            channel_multiple=self.config.channel_multiple,
            head_counts=self.config.legal_head_counts,
        )

    @property
    def refits(self) -> bool:
        """Whether cuts are repaired; where whole blocks go, or parts of the hidden size, nothing is there to repair."""
        return self.config.repairs and not self.structure.spans_blocks

    @property
    def ratio(self) -> float:
        """Sparsity ratio reached so far."""
        return self.plan.ratio(self.structure)

    @property
    def num_parameters(self) -> int:
        """Base parameters of the model as it is now."""
        return self.structure.num_parameters - self.plan.removed_parameters(self.structure)

    @property
    def pending(self) -> list[ScheduledCut]:
        """Cuts that are still to be made."""
        return self.schedule[len(self.records) :]

    def begin(self, model: nn.Module, total_steps: int, calibration: Calibration | None = None) -> None:
        """Set the schedule and start to gather evidence; a model that is resumed must be at the plan already."""
        self._model, self._calibration = model, calibration
        config = self.config
        self._check_widths(model)
        check_tied_adapters(model)
        if self.total_steps not in (0, total_steps):
            raise ValueError(
                f"The run was started with {self.total_steps} steps and would now have {total_steps}, so that the "
                "cuts would fall elsewhere. Resume with the same data, batch size and number of steps."
            )
        self.total_steps = total_steps
        reads_weights = self.refits or config.criterion_name in READ_EFFECTIVE_WEIGHTS
        if reads_weights and any(map(has_variant, model.modules())):
            raise ValueError(
                "The adapter is a variant of LoRA (such as DoRA), whose weight is not W + s·B·A. With it, use the "
                "criterion 'fisher' or 'random' and repair='none' (--repair none)."
            )
        self.schedule = cut_schedule(
            total_steps=total_steps,
            start=config.prune_start,
            end=config.prune_end,
            # Gates are learnt once, up to the one cut.
            cuts=1 if isinstance(self.criterion, LearnedCriterion) else config.cuts,
            ratio=config.ratio,
            every=None if isinstance(self.criterion, LearnedCriterion) else config.cut_every,
        )
        if is_quantized_model(model) and any(map(has_variant, model.modules())):
            raise ValueError(
                "The adapter is a variant of LoRA (such as DoRA), which cannot be merged into a quantized base without "
                "a loss. Use plain LoRA, or a base in 16 or 32 bits."
            )
        if config.apply == "mask":
            self._masks = Masks(model, self.structure, self.plan)
        if self.pending:
            tell_micro_batches(self.criterion, self.micro_batches)
            self.criterion.attach(model, self.structure)
            self._attached = True
            if isinstance(self.criterion, LearnedCriterion):
                self.criterion.begin(self.schedule[-1].step, config.ratio)
                if self.learned:
                    self.criterion.restore(self.learned)

    def _check_widths(self, model: nn.Module) -> None:
        """Make sure that the model is the one that the plan was made for, and at that plan.

        Raises:
            ValueError: it is not, as when a callback is used for a second model.
        """
        plan = Plan.full(self.structure) if self.config.apply == "mask" else self.plan
        base = base_model(model)
        for dimension in self.structure:
            consumer = dimension.consumer
            length = axis_length(base.get_submodule(consumer.module), consumer.axis, consumer.parameter)
            groups = plan.count(dimension.name) // (dimension.strata if consumer.stacked else 1)
            if length != groups * consumer.group_size:
                raise ValueError(
                    f"{dimension.consumer.module} reads {length} features, and {groups} groups of "
                    f"{dimension.consumer.group_size} were left of it: this is not the model that was pruned so far. "
                    "Make a new PruningCallback for each run."
                )

    def _physical(self) -> Plan:
        """The plan that the tensors have: with masks, everything is still there."""
        return Plan.full(self.structure) if self._masks else self.plan

    def _read_scores(self) -> Scores | None:
        """Finite scores of the groups that are kept, from the evidence since the last call."""
        physical = self._physical()
        scores = self.criterion.scores(physical)
        if scores is not None and not isinstance(self.config.criterion, str):
            check_scores(self.config.criterion_name, self.structure, physical, scores)
        if scores is None or not all(bool(torch.isfinite(value).all()) for value in scores.values()):
            return None
        positions = self.plan.positions_in(physical)
        return {
            name: value[torch.as_tensor(positions[name], device=value.device)] if name in positions else value
            for name, value in scores.items()
        }

    def observe(self, usable: bool = True) -> None:
        """Take in the evidence of a step, after its backward passes; thrown away where the step is not usable."""
        if not self._attached:
            return
        if isinstance(self.criterion, LearnedCriterion):
            self.criterion.learn(usable)
        if not self.criterion.every_step:
            return
        scores = self._read_scores()
        if usable and scores is not None:
            self.average = updated(self.average, scores, self.config.average_decay)

    def _current_scores(self) -> Scores | None:
        if not self.criterion.every_step:
            return self._read_scores()
        average = averaged(self.average, self.config.average_decay, self.config.average_bias_correction)
        return average or None

    def cut_if_due(self, step: int, optimizer: object | None = None) -> CutRecord | None:
        """Make the cut that is due after an optimizer step; waits where there is no usable score yet."""
        due = [cut for cut in self.pending if cut.step <= step]
        if not due:
            return None
        started = time.monotonic()
        scores = self._current_scores()
        if scores is None:
            return None
        stable = stability(self.structure, self.plan.kept, self.importance, scores)
        self._remember(scores)
        # FLAP's own way to compare layers.
        ranked = self.config.criterion == "flap" and self.config.allocation == "global"
        if ranked:
            scores = {name: standardized(values) for name, values in scores.items()}
        after = allocate(
            self.structure,
            self.plan,
            scores,
            due[-1].ratio,
            self.legal_widths(),
            self.config.allocation,
            final_ratio=self.config.ratio,
            comparable=self.criterion.comparable,
            ranked=ranked,
        )
        errors = self._apply(after, optimizer)
        record = CutRecord(
            step,
            self.ratio,
            {kind: list(after.counts(self.structure, kind)) for kind in self.structure.kinds},
            stable,
            tuple(errors),
            time.monotonic() - started,
        )
        self.records += [record] * len(due)
        if not self.pending:
            self._release()
        return record

    def _remember(self, scores: Scores) -> None:
        """Note the scores under the groups' first numbers."""
        for dimension in self.structure:
            name = dimension.name
            known = self.importance.setdefault(name, torch.full((dimension.num_groups,), float("nan")))
            known[list(self.plan.kept[name])] = scores[name].float().cpu()

    def _apply(self, after: Plan, optimizer: object | None) -> list[ConsumerError]:
        """Cut, and tell of the error of each consumer that was repaired."""
        assert self._model is not None
        errors: list[ConsumerError] = []
        positions = after.positions_in(self.plan)
        if isinstance(self.criterion, LearnedCriterion):
            # The refit then starts from what the model was with its gates, and sees none itself.
            fold_gates_(self._model, self.structure, self.criterion.gates())
            self._release()
        if self._masks:
            self._masks.apply(after)
        else:
            cut_and_repair_(
                self._model,
                self.structure,
                self.plan,
                after,
                calibration=self._calibration if self.refits else None,
                damping=self.config.damping,
                optimizer=optimizer,
                repair=self.config.repair,
                noted=errors.append,
            )
        self.average = selected(self.average, positions)
        self.plan = after
        return errors

    def learned_state(self) -> dict[str, torch.Tensor]:
        """What a criterion that learns has learnt so far; empty after the cut."""
        return self.criterion.state() if self._attached and isinstance(self.criterion, LearnedCriterion) else {}

    def _release(self) -> None:
        """Stop to gather evidence: after the last cut a step costs what plain LoRA tuning costs."""
        if self._attached:
            self.criterion.detach()
            self._attached = False
            self.average = MovingAverage()

    def end(self) -> None:
        """Leave the model without hooks; masks become cuts."""
        self._release()
        if self._masks:
            self._masks.remove()
            self._masks = None
            assert self._model is not None
            slice_(self._model, self.structure, Plan.full(self.structure), self.plan)

    def summary(self) -> dict[str, Any]:
        """Where pruning stands, as plain values."""
        return {
            "ratio": self.ratio,
            "target_ratio": self.config.ratio,
            "parameters_before": self.structure.num_parameters,
            "parameters": self.num_parameters,
            "prunable_parameters_before": self.structure.prunable_parameters,
            "prunable_parameters": self.structure.prunable_parameters - self.plan.removed_parameters(self.structure),
            "cuts": [
                {
                    "step": record.step,
                    "ratio": record.ratio,
                    "widths": record.widths,
                    "stability": record.stability,
                    "seconds": record.seconds,
                }
                for record in self.records
            ],
            "refit_errors": [
                {"step": record.step, **asdict(error)}
                for record in {record.step: record for record in self.records}.values()
                for error in record.errors
            ],
        }
