"""Training with DeepSpeed's ZeRO: the configuration of ``accelerate launch``, its limits, and the engine."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from loraprune.processes.ranks import launched
from loraprune.processes.zero import kept_by_zero3
from loraprune.pruning.callback import PruningCallback
from loraprune.pruning.errors import TrainingDivergedError

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

    from loraprune.checkpoint.source import ModelSource
    from loraprune.pruning.config import PruningConfig
    from loraprune.tasks.options import RunOptions

logger = logging.getLogger("loraprune")

_ASKED = "ACCELERATE_USE_DEEPSPEED"
_INSTEAD = "Or replace DeepSpeed in the accelerate configuration by FSDP with fsdp_version: 2, which is --fsdp 2."


def zero_config() -> dict[str, Any] | None:
    """Return DeepSpeed's configuration for a run, or None if ``accelerate launch`` is not configured for DeepSpeed.

    It takes the section ``zero_optimization`` from there. Batch sizes, precision, gradient clipping, optimizer and
    schedule follow the training arguments.

    Raises:
        ValueError: DeepSpeed is missing, or cannot work here.
    """
    if os.environ.get(_ASKED, "").lower() not in ("1", "true", "yes", "on"):
        return None
    fault = None
    if find_spec("deepspeed") is None:
        fault = "is not installed. Run pip install deepspeed"
    elif launched() == 1:
        fault = "needs several processes, and this run has one. Increase num_processes"
    elif not _accelerated():
        fault = "accelerate does not support on a CPU. Run on GPUs"
    if fault is not None:
        raise ValueError(f"The accelerate configuration asks for DeepSpeed, which {fault}. {_INSTEAD}")
    from accelerate.utils import DeepSpeedPlugin

    zero = dict(DeepSpeedPlugin().deepspeed_config["zero_optimization"])
    if zero.get("stage") not in (1, 2, 3):
        raise ValueError(
            f"The accelerate configuration sets DeepSpeed's zero_stage to {zero.get('stage')}. Set it to 1, 2 or 3. "
            f"{_INSTEAD}"
        )
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    return {
        **dict.fromkeys(sizes, "auto"),
        "bf16": {"enabled": "auto"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _accelerated() -> bool:
    return torch.cuda.is_available()


def settle_zero(
    config: Mapping[str, Any] | None, options: RunOptions, source: ModelSource, pruning: PruningConfig, training: object
) -> RunOptions:
    """Check that DeepSpeed supports a run. With ZeRO-3, FSDP2 shards the weights before and after training.

    Args:
        config: DeepSpeed's configuration; None without DeepSpeed.
        options: options of the run.
        source: source of the model.
        pruning: pruning configuration.
        training: training arguments of the user.

    Raises:
        ValueError: DeepSpeed does not support it.
    """
    if config is None:
        return options
    fault, stage = None, config["zero_optimization"]["stage"]
    if pruning.unstructured:
        fault = "the criterion 'pst' does not work. Choose another one."
    elif pruning.target.ratio > 0.0 and stage == 3:
        fault = "ZeRO-3 trains weights that nothing cuts. Cut with oneshot, and run recover after it."
    elif pruning.target.ratio > 0.0 and not pruning.cuts_first:
        fault = "a run cannot cut during training. Cut before the first step: --prune-start 0 --cuts 1."
    elif options.resume or options.keep_run:
        fault = f"a run saves no states. Leave out {'--resume' if options.resume else '--keep-run'}."
    elif options.eval_steps is not None:
        fault = "a run measures before and after training only. Leave out --eval-steps."
    elif options.quantization is not None or source.packed:
        fault = "a quantized base cannot be trained. Leave out the quantization."
    elif options.sharded and stage < 3:
        fault = f"ZeRO-{stage} keeps the weights whole, and --fsdp 2 does not. Leave out --fsdp, or set zero_stage: 3."
    elif not isinstance(training, Mapping):
        fault = "training arguments are given by name, and this is an object. Pass a mapping."
    if fault is not None:
        raise ValueError(f"With DeepSpeed, {fault} {_INSTEAD}")
    logger.info("DeepSpeed trains with ZeRO-%d. The run saves no states and cannot be resumed", stage)
    if stage < 3:
        return options
    logger.info("Before and after training, the processes share the weights as with --fsdp 2")
    return replace(options, fsdp=2)


@contextmanager
def unseen_by_transformers() -> Iterator[None]:
    """Hide DeepSpeed's configuration after a ``with`` block that creates training arguments.

    Otherwise, transformers would partition every model that a process creates or loads later.
    """
    asked = os.environ.get(_ASKED)
    try:
        yield
    finally:
        if asked is not None:
            from transformers.integrations.deepspeed import unset_hf_deepspeed_config

            os.environ[_ASKED] = asked  # the training arguments delete it
            unset_hf_deepspeed_config()


@contextmanager
def zero_engine(trainer: Trainer, pruning: PruningCallback) -> Iterator[None]:
    """Train with DeepSpeed in a ``with`` block, if the training arguments ask for it; then unwrap the model."""
    config: Any = getattr(trainer.args, "hf_deepspeed_config", None)
    if config is None:
        yield
        return
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    trainer.add_callback(StopAtNonFinite(trainer))
    adapted: Any = trainer.model
    if pruning.run is None:
        pruning.cut_first_(adapted, ())  # describes the model now: partitioned weights have no shapes
    set_hf_deepspeed_config(config)
    try:
        with kept_by_zero3(adapted, config.config["zero_optimization"]) if config.is_zero3() else nullcontext():
            yield
            trainer.accelerator.free_memory()  # destroys the engine
            trainer.model_wrapped, trainer.deepspeed = adapted, None
    finally:
        unset_hf_deepspeed_config()


class StopAtNonFinite(TrainerCallback):
    """Stops a run at the first step with NaN or Inf in the gradients, because DeepSpeed uses them nevertheless."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check the norm of the gradients, which is the same in all processes."""
        engine: Any = self._trainer.model_wrapped
        if not math.isfinite(float(engine.get_global_grad_norm())):
            raise TrainingDivergedError(
                f"NaN or Inf in the gradients of step {state.global_step}, and DeepSpeed does not skip a step. Try a "
                "lower learning rate, and check the data."
            )
