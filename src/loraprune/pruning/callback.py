"""A Trainer callback that prunes a model during LoRA tuning."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import DefaultFlowCallback, TrainerCallback

from loraprune.calibration.block_by_block import Calibration
from loraprune.calibration.progress import ProgressOf
from loraprune.layers.unwrap import base_model
from loraprune.processes.sharding import is_sharded
from loraprune.pruning.before_training import cut_first_, is_due, looks_at_data
from loraprune.pruning.calibration_data import draw_batches, draw_calibration
from loraprune.pruning.config import PruningConfig
from loraprune.pruning.errors import TrainingDivergedError
from loraprune.pruning.in_parallel import check_parallel, check_same_everywhere, set_up_anew_
from loraprune.pruning.live_values import live_values
from loraprune.pruning.phase_timer import (
    AFTER_CUTS,
    BEFORE_CUTS,
    BETWEEN_CUTS,
    CUTTING,
    MASKING,
    PREPARING,
    TRAINING,
    PhaseTimer,
)
from loraprune.pruning.pruner import Pruner
from loraprune.pruning.resume import last_checkpoint, new_run, restore_, save_state, set_aside_
from loraprune.pruning.resume_order import check_before_resuming_, warn_if_not_resumed
from loraprune.pruning.run import PruningRun

if TYPE_CHECKING:
    from torch import nn
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments


SLICEABLE_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adagrad", "rmsprop", "sgd")
"""Values of ``optim`` whose state is numbers and tensors of the parameter's shape."""


def _check_router_loss(model: Any, run: PruningRun) -> None:
    """Check that no load-balancing loss is on if whole experts are pruned: it reads their number from the config.

    Raises:
        ValueError: it is on.
    """
    config = base_model(model).config
    if "experts" in run.structure.kinds and getattr(config, "output_router_logits", False):
        raise ValueError(
            "The load-balancing loss does not work while whole experts are pruned. Switch it off: "
            "SFTConfig(router_aux_loss_coef=0.0), or config.output_router_logits = False."
        )


class PruningCallback(TrainerCallback):
    """Prunes the model of a ``Trainer`` or ``SFTTrainer`` during LoRA tuning; it runs a :class:`loraprune.Pruner`.

    Example::

        callback = PruningCallback(PruningConfig(ratio=0.5))
        SFTTrainer(model, train_dataset=data, peft_config=LoraConfig(...), callbacks=[callback]).train()

    After ``train()`` the model has fewer heads and channels; merge the adapter and save it with
    :func:`loraprune.save_pruned`.

    With ``PruningConfig(criterion="pst")`` nothing is cut: a share of the weights that LoRA adapts becomes zero. The
    adapter does not hold the mask, so merge it into the model that it was trained in.

    The callback adds values to the Trainer's logs; see :func:`loraprune.pruning.live_values.live_values`. Call
    :meth:`lead_` so that the callbacks of ``report_to`` get them; without that call, a warning is issued.

    Args:
        config: pruning configuration.
        calibration: data for the repair: token ids (1-D tensors) or batches of the model's inputs (mappings). None
            draws it from the training data.

    Attributes:
        run: structure, plan and cuts; set when training begins (or by :meth:`restore_`).
        interrupted: whether the run was stopped to be resumed later; if so, there is no warning about missing cuts.
        history: an entry for each log: step, loss, ratio, parameters, seconds since the start.
        phases: time spent by phase, with that of an interrupted run that was resumed.
        steps: number of optimizer steps.
    """

    def __init__(self, config: PruningConfig | None = None, calibration: Calibration | None = None) -> None:
        self.config = config or PruningConfig()
        if self.config.unstructured:
            self.config = self.config.changed(repair="none")
        self.run: PruningRun | None = None
        self._pruner: Pruner | None = None
        self.history: list[dict[str, Any]] = []
        self.skipped_steps: list[int] = []
        self.phases = PhaseTimer()
        self.steps = 0
        self._calibration = calibration
        self.interrupted = False
        self._diverged: TrainingDivergedError | None = None
        self._leads = False
        self._restored_from: Path | None = None
        self._trainer: Trainer | None = None
        self._is_live = True
        self._started = 0.0
        self._logged = 0

    @property
    def _cuts(self) -> bool:
        """Whether tensors are cut, and the optimizer's state with them."""
        return not self.config.unstructured

    def restore_(self, model: nn.Module, checkpoint: str | Path) -> None:
        """Restore the state of an interrupted run's checkpoint in an unpruned model, in place.

        Call it before the Trainer is built, then ``trainer.train(resume_from_checkpoint=checkpoint)``.

        Raises:
            FileNotFoundError: the folder has no state of a pruning run.
            ValueError: the run was started with another configuration or model.
        """
        self.run, self.history, self.skipped_steps = restore_(model, Path(checkpoint), self.config)
        self._restored_from = Path(checkpoint)
        self._take_over_time()

    def cut_first_(
        self, model: nn.Module, calibration: Calibration, progress: ProgressOf = lambda what, done, total: None
    ) -> None:
        """Make the cut before the first step now, in place, before you add an adapter to the model.

        Without this call, the cut is made when training begins, and the adapter is cut with the model.

        Args:
            model: unpruned model.
            calibration: token ids (1-D tensors) or batches of the model's inputs (mappings).
            progress: called with the name of the work, finished steps and total steps.
        """
        self.run = new_run(model, self.config)
        self.run.phases = self.phases
        if is_due(self.run):
            cut_first_(self.run, model, calibration, progress)

    def _take_over_time(self) -> None:
        """Add the time that the interrupted run had spent."""
        assert self.run is not None
        self.phases.take_over(self.run.phases.seconds)
        self.run.phases = self.phases

    def lead_(self, trainer: Trainer) -> None:
        """Move this callback before a Trainer's other callbacks, so that those that write logs get its values.

        Example::

            trainer = SFTTrainer(model, args=SFTConfig(report_to="tensorboard"), callbacks=[callback], ...)
            callback.lead_(trainer)
        """
        self._trainer = trainer
        callbacks = trainer.callback_handler.callbacks
        others = [other for other in callbacks if other is not self]
        # The callback that decides when to save stays first, so that this one can put off a save.
        flow = [other for other in others if isinstance(other, DefaultFlowCallback)]
        callbacks[:] = [*flow, self, *(other for other in others if other not in flow)]
        self._leads = True
        check_before_resuming_(
            trainer, lambda: (self.run is None and self.config.target.ratio > 0.0, self._restored_from)
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the arguments, set the schedule and start to collect evidence."""
        cut = self.run is not None and self.config.cuts_first and not is_due(self.run)
        check_parallel(args, self.config, self._trainer, cuts_later=self.config.target.ratio > 0.0 and not cut)
        if args.load_best_model_at_end and self.config.target.ratio > 0.0:
            raise ValueError(
                "load_best_model_at_end may bring back an adapter from before a cut, which no longer fits the model. "
                "Switch it off."
            )
        if args.n_gpu > 1:
            raise ValueError(
                f"This process sees {args.n_gpu} GPUs and would use DataParallel, which is not supported. Make one "
                "visible with CUDA_VISIBLE_DEVICES=0."
            )
        if self._cuts and self.config.target.ratio > 0.0 and args.optim not in SLICEABLE_OPTIMIZERS:
            raise ValueError(
                f"The state of the optimizer {str(getattr(args.optim, 'value', args.optim))!r} cannot be cut with the "
                f"weights. Use one of {', '.join(SLICEABLE_OPTIMIZERS)}."
            )
        if args.fp16:
            raise ValueError("fp16 training is not supported: its loss scaling would get into the scores. Use bf16.")
        self._warn_of_deaf_writers(args)
        warn_if_not_resumed(self._restored_from, state.global_step)
        self._restored_from = None
        model = kwargs["model"]
        if self.run is None:
            if state.global_step > 0 and self.config.target.ratio > 0.0:
                raise ValueError(
                    "This run resumes from a checkpoint, but the model does not have the checkpoint's structure. Call "
                    "PruningCallback.restore_(model, checkpoint) before you build the Trainer."
                )
            self.run = new_run(model, self.config)
            self.run.phases = self.phases
        needed = self.run.refits if not self.config.cuts_first else is_due(self.run) and looks_at_data(self.run)
        if self._calibration is None and needed and self.config.target.ratio > 0.0:
            self._calibration = self._draw(model, kwargs["train_dataloader"])
        _check_router_loss(model, self.run)
        cut_before = len(self.run.records)
        self._pruner = Pruner.of(
            self.run,
            model,
            total_steps=state.max_steps,
            calibration=self._calibration,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
        )
        check_same_everywhere(self.run)
        if len(self.run.records) > cut_before and self._cuts:
            set_up_anew_(self._trainer)
        self._pruner.steps = self._logged = state.global_step
        self._pruner.skipped_steps = self.skipped_steps
        spent = self.history[-1]["seconds"] if self.history else 0.0
        self._started = time.monotonic() - spent
        self.phases.begin(PREPARING)

    def _warn_of_deaf_writers(self, args: TrainingArguments) -> None:
        writers = [args.report_to] if isinstance(args.report_to, str) else args.report_to or []
        named = ", ".join(name for name in writers if name != "none")
        if named and not self._leads:
            warnings.warn(
                f"report_to={named} does not get the values that pruning adds to the logs. Call "
                "callback.lead_(trainer) after you build the Trainer.",
                stacklevel=2,
            )

    def _draw(self, model: nn.Module, loader: Any) -> Calibration:
        """Draw calibration data from the training data: token ids for causal language models, inputs for others."""
        assert self.run is not None
        count, seed = self.config.calibration_sequences, self.config.seed
        if self.run.structure.spec.auto_class == "AutoModelForCausalLM":
            return draw_calibration(loader.dataset, count, seed)
        return draw_batches(loader.dataset, loader.collate_fn, count, seed, base_model(model).dtype)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Collect the evidence of the step; skip a step whose gradients are not finite."""
        assert self._pruner is not None
        try:
            usable = self._pruner.observe(kwargs["optimizer"])
        except TrainingDivergedError as error:
            usable, self._diverged = False, error
            control.should_training_stop = True
        if not usable:
            # Without gradients the optimizer leaves every parameter as it is.
            kwargs["optimizer"].zero_grad(set_to_none=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Make the cut that is due."""
        assert self.run is not None
        assert self._pruner is not None
        self.steps = state.global_step
        self.phases.lap(self._phase(self.run))
        if self._diverged is None and self._pruner.step(kwargs["optimizer"]) is not None:
            if self._cuts:
                check_same_everywhere(self.run)
                set_up_anew_(self._trainer)
            self.phases.lap(CUTTING if self._cuts else MASKING)
        self._put_off_saving(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put off a save while steps are skipped."""
        self._put_off_saving(control)

    @property
    def is_skipping(self) -> bool:
        """Whether the last step was skipped; the weights may be bad already, so they are not saved."""
        return self._pruner is not None and self._pruner.is_skipping

    def _put_off_saving(self, control: TrainerControl) -> None:
        """A saved state could replace an older one that is good."""
        if self.is_skipping:
            control.should_save = False

    def _phase(self, run: PruningRun) -> str:
        """Return the phase of the last step."""
        if not run.schedule or not self._cuts:
            return TRAINING
        if not run.pending:
            return AFTER_CUTS
        return BETWEEN_CUTS if run.records else BEFORE_CUTS

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add ratio, size and :func:`live_values` to the Trainer's logs; keep the history for the report.

        The Trainer counts the loss of a skipped step as 0 or as part of earlier ones, so the loss of a log with
        skipped steps is dropped.
        """
        if logs is None or self.run is None or "loss" not in logs:
            return
        since, self._logged = self._logged, state.global_step
        if any(step > since for step in self.skipped_steps):
            for entry in (logs, state.log_history[-1]):
                entry.pop("loss", None)
            return
        logs["sparsity_ratio"] = self.run.ratio
        if self._cuts:
            logs["base_parameters"] = self.run.num_parameters
        logs |= self._live_values(self.run)
        self.history.append(
            {
                "step": state.global_step,
                "loss": float(logs["loss"]),
                "ratio": self.run.ratio,
                "parameters": self.run.num_parameters,
                "seconds": time.monotonic() - self._started,
            }
        )

    def _live_values(self, run: PruningRun) -> dict[str, float]:
        """Return :func:`live_values`; an error in them does not stop the run."""
        if not self._is_live:
            return {}
        try:
            return live_values(run, since=self.history[-1]["step"] if self.history else 0)
        except Exception as error:
            self._is_live = False
            warnings.warn(
                "Importance, stability, errors and times could not be computed and are no longer logged "
                f"({type(error).__name__}: {error}).",
                stacklevel=2,
            )
            return {}

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the state of pruning in the checkpoint that the Trainer has written."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if self.run is None or not (state.is_world_process_zero or is_sharded(kwargs["model"])):
            return
        tensors = self.run.tensors(kwargs["model"])  # collective if the weights are sharded
        if folder.is_dir() and state.is_world_process_zero:
            save_state(self.run, tensors, folder, self.history, self.skipped_steps)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove all hooks; raise an error if the run diverged."""
        assert self.run is not None
        pending = [] if self.interrupted else self.run.pending
        self.phases.lap(self._phase(self.run))
        assert self._pruner is not None
        self._pruner.end()
        if self._diverged is not None:
            raise TrainingDivergedError(f"{self._diverged}{self._kept(args)}")
        if pending:
            warnings.warn(
                f"Training ended at step {state.global_step}, before {len(pending)} of "
                f"{len(self.run.schedule)} cuts: the ratio reached is {self.run.ratio:.4f}.",
                stacklevel=2,
            )

    def _kept(self, args: TrainingArguments) -> str:
        """Name the state to resume from after a divergence; set aside a state that no good step followed."""
        assert self._pruner is not None
        if args.save_strategy == "no":
            return ""
        folder = Path(str(args.output_dir))
        if args.process_index == 0:
            set_aside_(folder / f"checkpoint-{self._pruner.last_good_step}")
        kept = last_checkpoint(folder)
        if kept is None:
            return " No state was saved before that. Save more often with --save-steps."
        return f" The last good state is saved in {folder} ({kept.name})."


class PstCallback(PruningCallback):
    """Old name of :class:`PruningCallback` for the criterion ``pst``; the next version removes it."""

    def __init__(self, config: PruningConfig | None = None) -> None:
        warnings.warn(
            "PstCallback is PruningCallback now: PruningCallback(PruningConfig(criterion='pst')). The next version "
            "removes the old name.",
            FutureWarning,
            stacklevel=2,
        )
        config = config or PruningConfig(criterion="pst")
        if not config.unstructured:
            raise ValueError(
                f"PstCallback is for the criterion 'pst', not {config.criterion_name!r}. Use PruningCallback."
            )
        super().__init__(config)
