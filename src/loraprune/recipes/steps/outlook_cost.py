"""Expected cost of a run: memory, and operations, which give its time."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loraprune.allocation.schedule import ScheduledCut
from loraprune.display.time_left import Course, StepWork
from loraprune.measure.estimation.config import EstimateConfig
from loraprune.measure.estimation.estimate import Estimator
from loraprune.measure.estimation.result import Estimate
from loraprune.metrics.perplexity import HeldOut
from loraprune.processes.ranks import num_processes
from loraprune.pruning.config import PruningConfig
from loraprune.pruning.oneshot_config import OneshotConfig
from loraprune.recipes.steps.prepared import PreparedOneshot, PreparedRun, PreparedTraining
from loraprune.surgery.repairs import Stream
from loraprune.surgery.tune_norms import TOKENS_PER_STEP
from loraprune.tasks.options import LoraOptions

if TYPE_CHECKING:
    from loraprune.measure.estimation.oneshot_work import OneshotWork

logger = logging.getLogger("loraprune")

_LOOKS = 3
"""Forward passes over the calibration data in a cut: the model before it, scores and repair, the model after it."""

_MOMENTS = 6
"""Number of matrices of the size of a layer's second moment that scores and a repair hold at once."""

_PASSES_OF_NORMS = 3
"""Forward passes that a step on the norms takes: the dense model's, the pruned model's, and the way back."""

_SINGLE = 4


@dataclass(frozen=True, kw_only=True)
class ExpectedCost:
    """Cost of a run, estimated from shapes.

    Attributes:
        memory: peak memory in bytes.
        work: floating point operations of an optimizer step; None without training.
        cut: operations of one cut of all blocks; without training, of all cuts.
        measuring: operations of the measures before and after the run.
        estimate: estimate of the run; None without training.
    """

    memory: float
    work: StepWork | None = None
    cut: float = 0.0
    measuring: float = 0.0
    estimate: Estimate | None = None

    def flops(self, steps: int, cuts: Sequence[ScheduledCut] = ()) -> float:
        """Return the floating point operations of the whole run.

        Args:
            steps: number of optimizer steps.
            cuts: cuts of the whole run.
        """
        training = Course(steps=steps, work=self.work, cuts=cuts).work_between(0, steps) if self.work else 0.0
        return training + max(1, len(cuts)) * self.cut + self.measuring


def planned_steps(prepared: PreparedTraining) -> int:
    """Return the number of optimizer steps of a run, as its Trainer counts them."""
    arguments = prepared.arguments
    if arguments.max_steps > 0:
        return arguments.max_steps
    batches = -(-len(prepared.train_rows) // (arguments.per_device_train_batch_size * num_processes()))
    in_epoch = max(1, -(-batches // arguments.gradient_accumulation_steps))
    return math.ceil(arguments.num_train_epochs * in_epoch)


def training_cost(prepared: PreparedTraining, lengths: Sequence[int]) -> ExpectedCost | None:
    """Estimate a run with training; None if its model cannot run on the device ``meta``.

    Args:
        prepared: the run.
        lengths: number of tokens in each row; empty if rows are not text.
    """
    arguments, pruning, given = prepared.arguments, prepared.pruning, prepared.lora_options or LoraOptions()
    estimated = _nearest_estimated(pruning)
    settings = EstimateConfig(
        pruning=estimated,
        lora=replace(given, r=prepared.lora.r),
        batch_size=arguments.per_device_train_batch_size,
        max_length=max(lengths) if lengths else prepared.max_length,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        gradient_checkpointing=bool(arguments.gradient_checkpointing),
        quantization=prepared.options.quantization,
        dtype=str(prepared.computed_dtype).removeprefix("torch."),
        bf16=bool(arguments.bf16),
        distill=None if prepared.teacher is None else prepared.teacher.share,
        device="cpu" if prepared.device.type == "cpu" else "cuda",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator = Estimator(prepared.source, settings)
            estimate = estimator.estimate()
            work = estimator.oneshot_work() if pruning.repairs and pruning.target.ratio > 0.0 else None
    except (ValueError, RuntimeError, TypeError, NotImplementedError, AttributeError) as error:
        logger.debug("No estimate: %s", error)
        return None
    # The estimate assumes rows of the greatest length; most are shorter.
    filled = sum(lengths) / (len(lengths) * max(lengths)) if lengths else 1.0
    listening, after = estimate.step_flops * filled, estimate.step_flops_after * filled
    plain = after * estimate.before.forward_flops / max(estimate.after.forward_flops, 1.0)
    if pruning.unstructured:
        after = plain = listening
    return ExpectedCost(
        memory=estimate.memory.peak,
        work=StepWork(listening=max(listening, plain), plain=plain, after=after),
        cut=_cut_flops(prepared, estimate.before.forward_flops, work),
        measuring=_measuring(prepared, estimate.before.forward_flops, settings.max_length),
        estimate=estimate if estimated is pruning else None,
    )


def _nearest_estimated(pruning: PruningConfig) -> PruningConfig:
    """Return the most similar run that can be estimated: learned gates cost as much as ``fisher``, masks nothing."""
    if pruning.unstructured:
        return PruningConfig(ratio=0.0, repair="none")
    return PruningConfig(ratio=pruning.target.ratio, repair="none") if pruning.criterion.learns else pruning


def _cut_flops(prepared: PreparedTraining, forward: float, work: OneshotWork | None) -> float:
    """Return the operations of a cut on the calibration data; 0 without a cut."""
    pruning = prepared.pruning
    if pruning.target.ratio == 0.0 or not pruning.repairs:
        return 0.0
    if work is not None and pruning.cuts_first:
        return work.passes + work.moments + work.solves + work.tried
    sequences = min(pruning.calibration_sequences, len(prepared.train_rows))
    return _LOOKS * forward * sequences / num_processes()


def _measuring(prepared: PreparedRun, forward: float, tokens: int | None) -> float:
    """Return the operations of each process in forward passes over the held-out rows, before and after the run."""
    held_out = prepared.held_out
    if held_out is None:
        return 0.0
    rows = float(len(held_out))
    if isinstance(held_out, HeldOut) and tokens:
        rows = sum(len(ids) for ids, _ in held_out.sequences) / tokens
    return 2.0 * rows * forward / num_processes()


def oneshot_cost(prepared: PreparedOneshot, lengths: Sequence[int]) -> ExpectedCost:
    """Estimate a run without training.

    Args:
        prepared: the run.
        lengths: number of tokens in each row; empty if rows are not text.
    """
    config, structure = prepared.oneshot, prepared.structure
    rows = min(config.calibration_sequences, len(prepared.train_rows)) if config.needs_data else 0
    longest = max(lengths) if lengths else 1
    mean = sum(lengths) / len(lengths) if lengths else 1.0
    parameters, width = structure.num_parameters, prepared.computed_dtype.itemsize
    states = rows * mean * structure.hidden_size
    stream = prepared.structured and isinstance(getattr(config, "repair", None), Stream)
    # Current hidden states and the output of finished attention; with stream, also the hidden states of the uncut
    # model and, in 32 bits, targets of two layers.
    kept = 2 * states * width + (states * width + 2 * states * _SINGLE if stream else 0.0)
    features = max((d.num_groups * d.consumer.group_size for d in structure if not d.spans_blocks), default=0)
    moments = _MOMENTS * features**2 * _SINGLE if rows else 0.0
    verifying = parameters * prepared.saved_dtype.itemsize if prepared.options.verify else 0
    forward = 2.0 * parameters * longest
    cuts = config.cuts if isinstance(config, OneshotConfig) else 1
    a_step = max(1, int(TOKENS_PER_STEP // mean))
    followed = min(rows, prepared.norm_steps * a_step) * mean * structure.hidden_size * width
    tuning = prepared.norm_steps * _PASSES_OF_NORMS * 2.0 * parameters * a_step * mean / min(num_processes(), a_step)
    return ExpectedCost(
        memory=parameters * width + followed + max(kept + moments, verifying),
        cut=tuning
        + cuts * (_LOOKS * 2.0 * parameters * rows * mean / num_processes() + (rows > 0) * _eliminations(prepared)),
        measuring=_measuring(prepared, forward, longest),
    )


def _eliminations(prepared: PreparedOneshot) -> float:
    """Return the operations for factors of second moments: about 10 n³ for each consumer of n input features."""
    return sum(
        10.0 * (dimension.num_groups * dimension.consumer.group_size) ** 3
        for dimension in prepared.structure
        if not dimension.spans_blocks
    )
