"""Checks before any long work: everything that a run needs except the weights, cheapest first."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.allocation.allocate import check_reachable
from loraprune.checkpoint.load import DTYPES
from loraprune.checkpoint.save import check_relaxed_class
from loraprune.checkpoint.source import ModelSource
from loraprune.data.named import data_places, find_sources
from loraprune.importance.configs import Compresso, LoraGuided
from loraprune.layers.quantized import is_quantized_model
from loraprune.measure.width_times import SpeedGoal
from loraprune.processes.ranks import num_processes
from loraprune.pruning.callback import SLICEABLE_OPTIMIZERS
from loraprune.pruning.config import PruningConfig
from loraprune.pruning.resume import widths_begun_with
from loraprune.recipes.steps.evaluation import check_evaluations
from loraprune.recipes.steps.folders import check_folders, check_same_adapter, check_space
from loraprune.recipes.steps.goals import check_goals, given_goal, settle_goals
from loraprune.recipes.steps.prepared import PreparedTraining, RunInputs, find_source
from loraprune.recipes.steps.quantized import check_quantized_base, check_same_quantization
from loraprune.recipes.steps.same_run import check_same_run
from loraprune.recipes.steps.sharded import check_shareable, settle_sharing
from loraprune.recipes.steps.teacher import find_teacher
from loraprune.recipes.steps.zero import settle_zero, unseen_by_transformers, zero_config
from loraprune.record.numbers import counted
from loraprune.sparsity.pst_layer import check_adapter
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Structure
from loraprune.surgery.bias import bias_switches
from loraprune.surgery.repairs import Bias
from loraprune.tasks.arguments import given_values, training_arguments
from loraprune.tasks.lora import lora_config
from loraprune.tasks.options import LoraOptions, RunOptions
from loraprune.tasks.own_lora import own_config
from loraprune.tasks.rows import is_streamed, split_rows
from loraprune.tasks.task import Task

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, TrainingArguments

    from loraprune.data.named import Data


logger = logging.getLogger("loraprune")


def prepare(
    model: str | Path | PreTrainedModel,
    data: Data,
    pruning: PruningConfig,
    inputs: RunInputs,
    run_dir: Path,
    *,
    recovery: bool = False,
    keep_zeros: bool | None = False,
) -> PreparedTraining:
    """Check all inputs, cheapest first, and load everything except the weights."""
    options = inputs.options
    check_goals(options)
    data = find_sources(data)
    checkpoint = check_folders(options, (model, *data_places(data), inputs.tokenizer, inputs.image_processor))
    source, task = find_source(model, inputs)
    training = {} if inputs.training is None else inputs.training
    zero = zero_config()
    options = settle_sharing(settle_zero(zero, options, source, pruning, training), source, task, pruning)
    if pruning.unstructured:
        pruning, options = check_pst(pruning, options)
    with unseen_by_transformers():
        arguments, max_length = training_arguments(
            task, training, source, run_dir=run_dir, collator=inputs.collator, deepspeed=zero
        )
    if options.output is None or zero is not None:
        arguments.save_strategy = "no"
    elif options.keep_run and arguments.save_strategy == "no":
        raise ValueError("keep_run needs saved states, and save_strategy is 'no'. Leave one of them out.")
    _check_length(data, options, arguments)
    check_quantized_base(options, pruning, source.loaded, recovery=recovery)
    structure = describe(source.shapes, pruning.target.dimensions, pruning.target.keep_layers)
    _settle_router_loss_(arguments, structure)
    pruning, goal = _checked(pruning, structure, source, options, checkpoint)
    pruning = pruning.changed(seed=arguments.seed)
    _check_optimizer(pruning, arguments)
    given = LoraOptions() if inputs.lora is None else inputs.lora
    prepared = PreparedTraining(
        source=source,
        task=task,
        image_processor=task.find_image_processor(inputs.image_processor, source),
        pruning=pruning,
        arguments=arguments,
        max_length=max_length,
        lora=_adapter(given, structure, source, task, pruning),
        structure=structure,
        device=source.device,
        computing=source.device,
        options=options,
        goal=goal,
        checkpoint=checkpoint,
        recovery=recovery,
        keep_zeros=keep_zeros,
        base_quantized=options.quantization is not None or _quantized(source),
        given=given_values(training),
        lora_options=given if isinstance(given, LoraOptions) else None,
        teacher=find_teacher(options, source, task, arguments, recovery=recovery, prunes=pruning.target.ratio > 0.0),
    )
    check_shareable(options, structure, prepared.lora, pruning, source.shapes)
    check_space(structure, prepared.saved_dtype, source.device, pruning, arguments, options)
    setup = prepared.setup(inputs.collator, prompt=_pruning_prompt(pruning, task))
    prepared.take_rows_(split_rows(task, data, setup, arguments.seed, _sequences(arguments, pruning)))
    _check_prepared(prepared)
    check_evaluations(prepared)
    return prepared


def _check_length(data: Data, options: RunOptions, arguments: TrainingArguments) -> None:
    """Check that a run on a stream has a number of steps.

    Raises:
        ValueError: it has none.
    """
    if arguments.max_steps <= 0 and is_streamed(data, options):
        raise ValueError("--streaming needs the number of steps to know how many rows to read. Add --max-steps N.")


def _sequences(arguments: TrainingArguments, pruning: PruningConfig) -> int:
    """Return the number of rows that a run trains on, or calibrates on if that is larger."""
    in_a_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * num_processes()
    return max(arguments.max_steps * in_a_step, pruning.calibration_sequences)


def _check_prepared(prepared: PreparedTraining) -> None:
    """Check that each process has a row, and that a resumed run has the same inputs as before."""
    if len(prepared.train_rows) < num_processes():
        raise ValueError(
            f"The data has {counted(len(prepared.train_rows), 'row')} to train on, too few for {num_processes()} "
            "processes. Start fewer processes."
        )
    if prepared.checkpoint is not None:
        check_same_adapter(prepared.checkpoint, prepared.lora, prepared.name)
        check_same_quantization(prepared.checkpoint, prepared.options.quantization)
        check_same_run(prepared.checkpoint, prepared)


def _adapter(
    given: LoraConfig | LoraOptions, structure: Structure, source: ModelSource, task: Task, pruning: PruningConfig
) -> LoraConfig:
    """Return the adapter's configuration, checked against the criterion."""
    if isinstance(given, LoraOptions):
        given = lora_config(
            given, structure, source.shapes, task, every_group=isinstance(pruning.criterion, LoraGuided)
        )
    else:
        given = own_config(given, source.shapes, pruning)
    if pruning.unstructured:
        check_adapter(given)
    return given


def _quantized(source: ModelSource) -> bool:
    """Return whether the model was passed in quantized."""
    return source.loaded is not None and is_quantized_model(source.loaded)


def _checked(
    pruning: PruningConfig, structure: Structure, source: ModelSource, options: RunOptions, checkpoint: Path | None
) -> tuple[PruningConfig, SpeedGoal | None]:
    """Return the pruning configuration, checked against the model, and the speed goal."""
    pruning, goal = _check_ratio(_without_repair(pruning, structure), structure, source, options, checkpoint)
    _check_bias(pruning, structure, source, options)
    pruning.criterion.check(structure, while_training=not pruning.cuts_first)
    return pruning, goal


def _settle_router_loss_(arguments: Any, structure: Structure) -> None:
    """Switch a router's load-balancing loss off if whole experts are pruned: it reads their number from the config.

    Raises:
        ValueError: the user switched that loss on.
    """
    if "experts" not in structure.kinds or not hasattr(arguments, "router_aux_loss_coef"):
        return
    if arguments.router_aux_loss_coef:
        raise ValueError(
            f"--router-aux-loss-coef is {arguments.router_aux_loss_coef:g}, and the load-balancing loss does not work "
            "while whole experts are pruned. Leave it out, or prune expert_channels instead."
        )
    arguments.router_aux_loss_coef = 0.0


def _check_optimizer(pruning: PruningConfig, arguments: TrainingArguments) -> None:
    """Check that the optimizer's state can be cut with the weights."""
    if not pruning.unstructured and pruning.target.ratio > 0.0 and arguments.optim not in SLICEABLE_OPTIMIZERS:
        raise ValueError(
            f"The state of --optim {getattr(arguments.optim, 'value', arguments.optim)!s} cannot be cut with the "
            f"weights. Use one of {', '.join(SLICEABLE_OPTIMIZERS)}."
        )


def _pruning_prompt(pruning: PruningConfig, task: Task) -> str | None:
    """Return the text before every row, or None.

    Raises:
        ValueError: the model is not a causal language model.
    """
    prompt = pruning.criterion.prompt_text if isinstance(pruning.criterion, Compresso) else None
    if prompt is not None and task.name != "causal-lm":
        raise ValueError(
            f"--pruning-prompt is for causal language models, and this model's task is {task.name}. Leave it out."
        )
    return prompt


def _without_repair(pruning: PruningConfig, structure: Structure) -> PruningConfig:
    """Drop the repair if whole blocks or parts of the hidden size are removed: no single layer reads these."""
    if not structure.spans_blocks or not pruning.repairs:
        return pruning
    if pruning.target.ratio > 0.0:
        (kind,) = structure.kinds
        logger.info("No single layer reads the dimension '%s', so cuts are made without a repair.", kind)
    return pruning.changed(repair="none")


def _check_ratio(
    pruning: PruningConfig,
    structure: Structure,
    source: ModelSource,
    options: RunOptions,
    checkpoint: Path | None,
) -> tuple[PruningConfig, SpeedGoal | None]:
    """Convert a goal to a ratio or to widths, and check that they can be reached."""
    goal = None
    if not pruning.unstructured:
        stored = source.stored_dtype if options.dtype is None else DTYPES[options.dtype]
        begun = None if checkpoint is None else widths_begun_with(checkpoint)
        pruning, goal = settle_goals(pruning, structure, source, options, stored, begun=begun)
    if pruning.target.head_counts == "any":
        check_relaxed_class(structure, source.config)
    if pruning.target.ratio > 0.0 and not pruning.unstructured:
        target = pruning.target
        check_reachable(structure, target.ratio, target.legal_widths(structure), target.allocation or "balanced")
    return pruning, goal


def _check_bias(pruning: PruningConfig, structure: Structure, source: ModelSource, options: RunOptions) -> None:
    """Check that the model supports the repair ``bias``, if it is chosen.

    Raises:
        ValueError: it does not.
    """
    if not isinstance(pruning.repair, Bias) or pruning.target.ratio == 0.0:
        return
    if options.quantization is not None or _quantized(source):
        raise ValueError(
            "--repair bias adds a bias to layers, which a quantized base does not support. Use --repair refit, or "
            "leave the quantization out."
        )
    if bias_switches(source.shapes, structure) and options.save_adapter:
        raise ValueError(
            "--repair bias adds a bias to layers that have none in the original checkpoint, so the adapter could not "
            "be loaded on it. Leave --save-adapter out, or use --repair refit."
        )


# Options of the joint recipe with PST.


def check_pst(pruning: PruningConfig, options: RunOptions) -> tuple[PruningConfig, RunOptions]:
    """Return the options of a PST run, without repair and latency.

    Raises:
        ValueError: an option needs a smaller model.
    """
    goal = given_goal(options)
    if goal is not None:
        raise ValueError(f"You passed {goal}, and the criterion 'pst' does not remove weights. Pass a ratio instead.")
    if options.unrecovered:
        raise ValueError("measure_unrecovered needs a cut model, and the criterion 'pst' cuts nothing. Leave it out.")
    if pruning.target.ratio == 0.0:
        raise ValueError("ratio is 0, so no weight would become zero; it must lie between 0 and 1.")
    return pruning.changed(repair="none"), replace(options, latency=False)
