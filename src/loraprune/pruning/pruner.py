"""Pruning in your own training loop: evidence after every backward pass, cuts when they are due."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraprune.layers.unwrap import base_model
from loraprune.pruning.before_training import cut_first_, is_due, looks_at_data
from loraprune.pruning.config import PruningConfig
from loraprune.pruning.errors import TrainingDivergedError
from loraprune.pruning.group_run import restore_weights_
from loraprune.pruning.resume import check_same_config, new_run, run_values
from loraprune.pruning.run import PruningRun
from loraprune.surgery.config_widths import update_config_
from loraprune.surgery.cut import Rows, as_calibration
from loraprune.surgery.slicing import check_sliceable

if TYPE_CHECKING:
    from loraprune.pruning.groups import CutRecord
    from loraprune.structure.dimensions import Structure
    from loraprune.structure.plan import Plan


def gradients_finite(model: nn.Module) -> bool:
    """Return whether all gradients of a model are finite; costs one transfer from the device."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return not gradients or bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))


class Pruner:
    """Prunes a model in your own training loop.

    Example::

        pruner = Pruner(model, PruningConfig(ratio=0.5), total_steps=steps, calibration=rows)
        for step, batch in zip(range(steps), batches):
            model(**batch).loss.backward()
            if pruner.observe():  # the gradients are finite
                optimizer.step()
            optimizer.zero_grad()
            pruner.step(optimizer)  # cuts the model, and the optimizer's state with it, when a cut is due
        pruner.end()
        loraprune.save(model, "smaller", tokenizer)

    :class:`loraprune.PruningCallback` does the same in a Trainer.

    Args:
        model: the model, or the ``PeftModel`` around it, unpruned. The criterion ``lora`` needs an adapter.
        config: pruning configuration; the default halves the prunable parameters.
        total_steps: number of optimizer steps of the whole run; the times of the cuts depend on it.
        calibration: data for the repair of cuts: rows of token ids or mappings of the model's inputs, as for
            :func:`loraprune.cut_`. Not needed with ``repair="none"``.
        gradient_accumulation_steps: number of backward passes in an optimizer step; for the criterion ``taylor``.

    Attributes:
        run: structure, plan, scores and cuts.
        steps: number of optimizer steps so far.
        skipped_steps: steps whose gradients were not finite, counted from 1.

    Raises:
        ValueError: the model does not support this pruning, or calibration data are missing.
    """

    def __init__(
        self,
        model: nn.Module,
        config: PruningConfig | None = None,
        *,
        total_steps: int,
        calibration: Rows | None = None,
        gradient_accumulation_steps: int = 1,
    ) -> None:
        if total_steps < 1:
            raise ValueError(f"total_steps is {total_steps}; it is the number of optimizer steps, at least 1.")
        config = config or PruningConfig()
        run = new_run(model, config)
        needed = run.refits or (is_due(run) and looks_at_data(run))
        if needed and config.target.ratio > 0.0 and calibration is None:
            raise ValueError(
                "Repairs, and scores before the first step, need calibration data: pass calibration= (a few dozen "
                "rows of token ids), or use PruningConfig(repair='none') with prune_end above 0."
            )
        rows = None if calibration is None else as_calibration(calibration)
        self._begin(model, run, total_steps, rows, gradient_accumulation_steps)

    @classmethod
    def of(
        cls, run: PruningRun, model: nn.Module, *, total_steps: int, calibration: Any, gradient_accumulation_steps: int
    ) -> Pruner:
        """Make a pruner for a new or restored run; the model is at its plan."""
        pruner = cls.__new__(cls)
        pruner._begin(model, run, total_steps, calibration, gradient_accumulation_steps)
        return pruner

    def _begin(self, model: nn.Module, run: PruningRun, total_steps: int, calibration: Any, accumulation: int) -> None:
        self.run = run
        self.steps = 0
        self.skipped_steps: list[int] = []
        self._model = model
        self._calibration = calibration
        self._skipped_in_a_row = 0
        self._checked = False
        run.micro_batches = accumulation
        if is_due(run):
            cut_first_(run, model, calibration or [])
        run.begin(model, total_steps, calibration)

    @property
    def is_skipping(self) -> bool:
        """Whether the last step had NaN or Inf; the weights may be bad then."""
        return self._skipped_in_a_row > 0

    @property
    def last_good_step(self) -> int:
        """Last step with finite gradients."""
        return self.skipped_steps[-self._skipped_in_a_row] - 1 if self._skipped_in_a_row else self.steps

    @property
    def structure(self) -> Structure:
        """Structure of the model before pruning."""
        return self.run.structure

    @property
    def plan(self) -> Plan:
        """Current groups."""
        return self.run.plan

    @property
    def ratio(self) -> float:
        """Sparsity ratio reached so far."""
        return self.run.ratio

    def observe(self, optimizer: torch.optim.Optimizer | None = None) -> bool:
        """Collect the evidence of a step. Call it after the backward passes, before gradients are clipped or used.

        Args:
            optimizer: optimizer of the adapter; the criterion ``pst`` uses its learning rate for the scores, unless
                you set ``Pst(learning_rate=...)``.

        Returns:
            Whether the gradients are finite. If they are not, the step gives no evidence; skip the optimizer step.

        Raises:
            TrainingDivergedError: more than ``max_skipped_steps`` steps in a row had NaN or Inf.
        """
        finite = gradients_finite(self._model)
        self.run.observe(finite, optimizer)
        if finite:
            self._skipped_in_a_row = 0
            return True
        step = self.steps + 1
        self.skipped_steps.append(step)
        self._skipped_in_a_row += 1
        warnings.warn(f"Step {step}: NaN or Inf in the gradients; the step is skipped.", stacklevel=2)
        if self._skipped_in_a_row > self.run.config.max_skipped_steps:
            raise TrainingDivergedError(
                f"NaN or Inf in the gradients of {self._skipped_in_a_row} steps in a row, from step "
                f"{self.skipped_steps[-self._skipped_in_a_row]} on. Try a lower learning rate, and check the data."
            )
        return False

    def step(self, optimizer: torch.optim.Optimizer) -> CutRecord | None:
        """Count an optimizer step, and make the cut that is due after it.

        Args:
            optimizer: optimizer whose state is cut with the parameters; it may be accelerate's wrapper.

        Returns:
            The cut, or None if none was made.

        Raises:
            ValueError: the optimizer's state cannot be cut with the weights.
        """
        self.steps += 1
        if not self._checked and self.run.pending and not self.run.config.unstructured:
            check_sliceable(optimizer)
            self._checked = True
        return self.run.cut_if_due(self.steps, optimizer)

    def end(self) -> None:
        """Remove all hooks and write the new widths into the model's config; then use :func:`loraprune.save`."""
        self.run.end()
        if not self.run.config.unstructured and self.run.records:
            base: Any = base_model(self._model)
            update_config_(base.config, self.run.structure, self.run.plan)

    def summary(self) -> dict[str, Any]:
        """Return the progress of pruning as plain values: ratio, parameters, cuts, errors of the repair."""
        return self.run.summary() | {"steps": self.steps, "skipped_steps": list(self.skipped_steps)}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for resuming a run, as plain values and tensors, for ``torch.save`` or a checkpoint.

        It holds the plan, averages of scores, cuts, and base weights that repairs changed. Save adapter, optimizer and
        data position yourself.
        """
        values = run_values(self.run, {"steps": self.steps, "skipped_steps": list(self.skipped_steps)})
        return {"values": values, "tensors": self.run.tensors(self._model)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a run's state, in place, in a new pruner of an unpruned model.

        Call it before the first step, and before you load the adapter's weights and the optimizer's state, which only
        fit the pruned model.

        Raises:
            ValueError: the run had another configuration, model or number of steps, or this pruner has made steps.
        """
        if self.steps or (self.run.records and not self.run.config.cuts_first):
            raise ValueError("This pruner has made steps already. Load the state into a new one for an unpruned model.")
        values = state["values"]
        check_same_config(values, self.run.config)
        if values["total_steps"] != self.run.total_steps:
            raise ValueError(
                f"The run was started with {values['total_steps']} steps, and this pruner has {self.run.total_steps}, "
                "which would move the cuts. Pass the same total_steps."
            )
        micro_batches, total_steps = self.run.micro_batches, self.run.total_steps
        if self.run.records:  # the cut before the first step, made again
            if values["plan"] != self.run.plan.to_json():
                raise ValueError(
                    "The cut before the first step kept other groups than in the saved run. Make the pruner with the "
                    "same model and calibration data."
                )
            restore_weights_(self._model, state["tensors"])
        else:
            self.run.end()
            run = type(self.run).restored(self._model, self.run.config, values, state["tensors"])
            self._begin(self._model, run, total_steps, self._calibration, micro_batches or 1)
        self.steps = values["steps"]
        self.skipped_steps = list(values["skipped_steps"])
