"""A run that cuts groups: schedule, averages of scores, cuts so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from loraprune.allocation.allocate import check_reachable
from loraprune.calibration.block_by_block import Calibration
from loraprune.importance.configs import Fisher
from loraprune.importance.criterion import Criterion, LearnedCriterion, check_scores
from loraprune.importance.criterion_config import OwnCriterion
from loraprune.importance.moving_average import MovingAverage, Scores, averaged, selected, updated
from loraprune.importance.whole_blocks import built_for, tell_micro_batches
from loraprune.layers.axes import axis_length
from loraprune.layers.lora import check_tied_adapters, has_variant
from loraprune.layers.quantized import is_quantized, is_quantized_model, prepare_, set_weight_, source_of
from loraprune.layers.unwrap import base_layer, base_model
from loraprune.processes.ranks import is_main, num_processes, summed
from loraprune.processes.sharding import apart, whole, whole_weights
from loraprune.pruning.calibration_data import warn_of_few_tokens
from loraprune.pruning.groups import CutRecord, CutTools, Groups
from loraprune.pruning.run import PruningRun
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Member, PrunableDimension
from loraprune.structure.plan import Plan
from loraprune.structure.widths import LegalWidths
from loraprune.surgery.bias import give_biases_
from loraprune.surgery.fold_gates import fold_gates_
from loraprune.surgery.masking import Masks
from loraprune.surgery.repairs import Bias
from loraprune.surgery.slicing import slice_

if TYPE_CHECKING:
    from torch import nn

    from loraprune.pruning.config import PruningConfig


@dataclass(kw_only=True)
class GroupRun(PruningRun):
    """A run that cuts groups of a model during training.

    Attributes:
        groups: remaining groups and their last scores.
        average: moving average of the scores of the current groups.
        learned: state of a learning criterion when the run was interrupted.
    """

    groups: Groups
    average: MovingAverage = field(default_factory=MovingAverage)
    learned: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._model: nn.Module | None = None
        self._masks: Masks | None = None
        self._calibration: Calibration | None = None
        self._attached = False
        # A cut before the first step scores by itself.
        config = Fisher() if self.config.cuts_first else self.config.criterion
        self.criterion: Criterion = built_for(config, self.structure, self.config.seed)

    @classmethod
    def of(cls, model: nn.Module, config: PruningConfig) -> GroupRun:
        """Make a new run for an unpruned model.

        Raises:
            ValueError: the model cannot be pruned, or not to that ratio.
        """
        prepare_(model)
        target = config.target
        structure = describe(model, target.dimensions, target.keep_layers)
        config.criterion.check(structure, while_training=not config.cuts_first)
        run = cls(config=config, structure=structure, groups=Groups.all_of(structure, target, config.criterion))
        if target.ratio > 0.0:
            check_reachable(structure, target.ratio, run.legal_widths(), target.allocation or "balanced")
            if run.refits and isinstance(config.repair, Bias):
                give_biases_(model, structure)
        return run

    @property
    def plan(self) -> Plan:
        """Current groups."""
        return self.groups.plan

    @property
    def importance(self) -> Scores:
        """Last score of every group, with removed ones; shape ``(num_groups,)`` each."""
        return self.groups.importance

    @property
    def averages(self) -> Scores:
        """Averages of the scores of the current groups; empty if there are none."""
        return averaged(self.average, self.config.average_decay, self.config.average_bias_correction)

    def legal_widths(self) -> LegalWidths:
        """Return the widths that the plan may have."""
        return self.groups.legal_widths()

    @property
    def refits(self) -> bool:
        """Whether cuts are repaired; cuts of whole blocks or of the hidden size are not."""
        return self.config.repairs and not self.structure.spans_blocks

    @property
    def ratio(self) -> float:
        """Sparsity ratio reached so far."""
        return self.plan.ratio(self.structure)

    def begin(self, model: nn.Module, total_steps: int, calibration: Calibration | None = None) -> None:
        """Set the schedule and start to collect evidence; a resumed model must be at the plan already."""
        self._model, self._calibration = model, calibration
        if self.config.target.ratio > 0.0:
            self._check_widths(model)
        check_tied_adapters(model)
        self._check_variants(model)
        self.set_total_steps(total_steps)
        schedule = self.config.schedule
        if self.config.criterion.learns:  # once, up to the one cut
            schedule = replace(schedule, cuts=1, every=None)
        self.schedule = schedule.cut_times(total_steps, self.config.target.ratio)
        if self.pending and self.refits:
            warn_of_few_tokens(self.structure, calibration or (), self.config.repair, self.config.criterion)
        if self.config.apply == "mask":
            self._masks = Masks(model, self.structure, self.plan)
        if self.pending:
            # The count of all processes: evidence is squared or made positive after the sum over them.
            tell_micro_batches(self.criterion, self.micro_batches and self.micro_batches * num_processes())
            self.criterion.attach(model, self.structure)
            self._attached = True
            if isinstance(self.criterion, LearnedCriterion):
                self.criterion.begin(self.schedule[-1].step, self.config.target.ratio)
                if self.learned:
                    self.criterion.restore(self.learned)

    def _check_variants(self, model: nn.Module) -> None:
        """Refuse variants of LoRA if ``W + s·B·A`` is read or merged."""
        if not any(map(has_variant, model.modules())):
            return
        if self.refits or self.config.criterion.reads_effective_weights:
            raise ValueError(
                "The adapter is a variant of LoRA (such as DoRA), whose weight is not W + s·B·A. Use the criterion "
                "'fisher' or 'random' with repair='none' (--repair none)."
            )
        if is_quantized_model(model):
            raise ValueError(
                "The adapter is a variant of LoRA (such as DoRA), which cannot be merged into a quantized base without "
                "loss. Use plain LoRA, or a base in 16 or 32 bits."
            )

    def _check_widths(self, model: nn.Module) -> None:
        """Check that the model has the widths of the plan.

        Raises:
            ValueError: it does not, for example because a callback is used for a second model.
        """
        plan = Plan.full(self.structure) if self.config.apply == "mask" else self.plan
        base = base_model(model)
        for dimension in self.structure:
            consumer = dimension.consumer
            length = axis_length(base.get_submodule(consumer.module), consumer.axis, consumer.parameter)
            groups = plan.count(dimension.name) // (dimension.strata if consumer.stacked else 1)
            if length != groups * consumer.group_size:
                raise ValueError(
                    f"{dimension.consumer.module} reads {length} features, and the plan has {groups} groups of "
                    f"{dimension.consumer.group_size} there: this is not the model that was pruned so far. Make a new "
                    "PruningCallback for each run."
                )

    def _physical(self) -> Plan:
        """Return the plan of the tensors; with masks, they are still whole."""
        return Plan.full(self.structure) if self._masks else self.plan

    def _read_scores(self) -> Scores | None:
        """Return finite scores of the current groups, from the evidence since the last call."""
        physical = self._physical()
        scores = self.criterion.scores(physical)
        if scores is not None and isinstance(self.config.criterion, OwnCriterion):
            check_scores(self.config.criterion_name, self.structure, physical, scores)
            scores = {name: summed(value) / num_processes() for name, value in scores.items()}
        if scores is None or not all(bool(torch.isfinite(value).all()) for value in scores.values()):
            return None
        positions = self.plan.positions_in(physical)
        return {
            name: value[torch.as_tensor(positions[name], device=value.device)] if name in positions else value
            for name, value in scores.items()
        }

    def observe(self, usable: bool = True, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Collect the evidence of a step, after its backward passes; drop it if the step is not usable."""
        if not self._attached:
            return
        if isinstance(self.criterion, LearnedCriterion):
            self.criterion.learn(usable)
        if not self.criterion.every_step:
            return
        scores = self._read_scores()
        if usable and scores is not None:
            self.average = updated(self.average, scores, self.config.average_decay)

    def cut_if_due(self, step: int, optimizer: object | None = None) -> CutRecord | None:
        """Make the cut that is due after an optimizer step; wait if there is no usable score yet."""
        due = self.due(step)
        if not due:
            return None
        scores = (self.averages or None) if self.criterion.every_step else self._read_scores()
        if scores is None:
            return None
        assert self._model is not None
        if isinstance(self.criterion, LearnedCriterion):
            # The repair then starts from the model with its gates folded in, and sees no gates.
            fold_gates_(self._model, self.structure, self.criterion.gates())
            self._release()
        before = self.plan
        record = self.groups.cut_(
            self._model,
            scores,
            due[-1].ratio,
            repair=self.config.repair,
            calibration=self._calibration if self.refits else None,
            step=step,
            tools=CutTools(optimizer=optimizer, masks=self._masks),
        )
        self.average = selected(self.average, self.plan.positions_in(before))
        self.records += [record] * len(due)
        if not self.pending:
            self._release()
        return record

    def learned_state(self) -> dict[str, torch.Tensor]:
        """Return the state of a learning criterion; empty after the cut."""
        return self.criterion.state() if self._attached and isinstance(self.criterion, LearnedCriterion) else {}

    def _release(self) -> None:
        """Stop collecting evidence: after the last cut, a step costs the same as plain LoRA tuning."""
        if self._attached:
            self.criterion.detach()
            self._attached = False
            self.average = MovingAverage()

    def end(self) -> None:
        """Remove all hooks; masks become cuts."""
        self._release()
        if self._masks:
            self._masks.remove()
            self._masks = None
            assert self._model is not None
            slice_(self._model, self.structure, Plan.full(self.structure), self.plan)

    def summary(self) -> dict[str, Any]:
        """Return the progress of pruning as plain values."""
        return {
            "ratio": self.ratio,
            "target_ratio": self.config.target.ratio,
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

    def values(self) -> dict[str, Any]:
        """Return the plan and the number of updates of the average."""
        return {"plan": self.plan.to_json(), "updates": self.average.updates}

    def tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return averages, importance, the state of a learning criterion, and changed base weights."""
        tensors = {f"average/{name}": value for name, value in self.average.values.items()}
        tensors |= {f"importance/{name}": value for name, value in self.importance.items()}
        tensors |= {f"learned/{name}": value for name, value in self.learned_state().items()}
        tensors |= {f"weight/{name}": value for name, value in self.repaired_weights(model).items()}
        return {name: value.cpu().contiguous() for name, value in tensors.items()}

    @classmethod
    def restored(
        cls, model: nn.Module, config: PruningConfig, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
    ) -> GroupRun:
        """Restore a run; an unpruned model gets its structure and repaired weights, in place."""
        prepare_(model)
        target = config.target
        structure = describe(model, target.dimensions, target.keep_layers)
        plan = Plan.from_json(values["plan"])
        plan.check(structure)

        def named(prefix: str) -> dict[str, torch.Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        if isinstance(config.repair, Bias) and target.ratio > 0.0 and not structure.spans_blocks:
            give_biases_(model, structure)
        if config.apply == "slice":
            slice_(model, structure, Plan.full(structure), plan)
        restore_weights_(model, tensors)
        device = next(model.parameters()).device
        averages = {name: value.to(device) for name, value in named("average/").items()}
        run = cls(
            config=config,
            structure=structure,
            groups=Groups(structure, target, config.criterion, plan, named("importance/")),
            average=MovingAverage(averages, values["updates"]),
            learned=named("learned/"),
        )
        run.take_over(values)
        return run

    def repaired_weights(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return base weights that cuts changed, for example by a repair or by folded gates.

        The call is collective, because the weights may be sharded; the first process gets the weights.

        Quantized layers are always among them, because their values depend on earlier cuts.
        """
        base = base_model(model)
        found: dict[str, torch.Tensor | None] = {}

        def on_main(weight: torch.Tensor) -> torch.Tensor | None:
            full = whole(weight)
            return full.detach().cpu().contiguous() if is_main() else None

        for dimension in self.structure if self.records else ():
            for member in dimension.all_members:
                layer = base_layer(base.get_submodule(member.module))
                weight = self._changed_weight(dimension, member, layer)
                if weight is not None:
                    found[f"{member.module}.{member.parameter}"] = on_main(weight)
                if self.refits and isinstance(self.config.repair, Bias) and member is dimension.consumer:
                    found[f"{member.module}.bias"] = on_main(layer.bias)
        return {name: value for name, value in found.items() if value is not None}

    def _changed_weight(self, dimension: PrunableDimension, member: Member, layer: Any) -> torch.Tensor | None:
        weight: torch.Tensor | None = source_of(layer)
        changed = self.refits or self.config.criterion.learns
        if weight is None and changed and member is dimension.consumer and not is_quantized(layer):
            return getattr(layer, member.parameter)
        if weight is None and member.axis == "norm" and dimension.kind == "hidden":
            return getattr(layer, member.parameter)  # scaled at each cut, and rounded
        return weight


@torch.no_grad()
def restore_weights_(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Restore base weights that cuts changed; see :meth:`GroupRun.repaired_weights`."""
    base = base_model(model)
    with apart(base):
        for name, weight in tensors.items():
            if not name.startswith("weight/"):
                continue
            module, _, parameter = name.removeprefix("weight/").rpartition(".")
            layer = base_layer(base.get_submodule(module))
            if is_quantized(layer) and parameter == "weight":
                set_weight_(layer, weight)
                continue
            with whole_weights(layer):
                getattr(layer, parameter).data.copy_(weight)
