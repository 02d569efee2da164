"""Checks before any long work: everything a run needs but the weights, cheapest first."""

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
    """Check all that was given, cheapest first, and load everything but the weights."""
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
        raise ValueError("keep_run was given, and save_strategy is 'no': the run has no states to keep. Leave one out.")
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
    """Make sure that a run on a stream says how long it is.

    Raises:
        ValueError: it does not.
    """
    if arguments.max_steps <= 0 and is_streamed(data, options):
        raise ValueError("--streaming reads as many rows as the run has steps for. Say how many steps: --max-steps N.")


def _sequences(arguments: TrainingArguments, pruning: PruningConfig) -> int:
    """Rows that a run of a number of steps trains on, or calibrates on if these are more."""
    in_a_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * num_processes()
    return max(arguments.max_steps * in_a_step, pruning.calibration_sequences)


def _check_prepared(prepared: PreparedTraining) -> None:
    """Make sure that each process has a row, and that a run that is resumed is the one that was begun."""
    if len(prepared.train_rows) < num_processes():
        raise ValueError(
            f"The data gives {counted(len(prepared.train_rows), 'row')} to train on, too few for {num_processes()} "
            "processes. Start fewer processes."
        )
    if prepared.checkpoint is not None:
        check_same_adapter(prepared.checkpoint, prepared.lora, prepared.name)
        check_same_quantization(prepared.checkpoint, prepared.options.quantization)
        check_same_run(prepared.checkpoint, prepared)


def _adapter(
    given: LoraConfig | LoraOptions, structure: Structure, source: ModelSource, task: Task, pruning: PruningConfig
) -> LoraConfig:
    """The adapter's configuration, once it is sure that it goes with the criterion."""
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
    """Whether the model was given, and quantized."""
    return source.loaded is not None and is_quantized_model(source.loaded)


def _checked(
    pruning: PruningConfig, structure: Structure, source: ModelSource, options: RunOptions, checkpoint: Path | None
) -> tuple[PruningConfig, SpeedGoal | None]:
    """What is to be pruned, once it is sure that this model can be pruned so, and the speed that was asked for."""
    pruning, goal = _check_ratio(_without_repair(pruning, structure), structure, source, options, checkpoint)
    _check_bias(pruning, structure, source, options)
    pruning.criterion.check(structure, while_training=not pruning.cuts_first)
    return pruning, goal


def _settle_router_loss_(arguments: Any, structure: Structure) -> None:
    """Switch a router's load-balancing loss off where whole experts go: it counts on the experts of the config.

    Raises:
        ValueError: the user asked for that loss.
    """
    if "experts" not in structure.kinds or not hasattr(arguments, "router_aux_loss_coef"):
        return
    if arguments.router_aux_loss_coef:
        raise ValueError(
            f"--router-aux-loss-coef is {arguments.router_aux_loss_coef:g}, and whole experts are pruned: the loss "
            "that balances the load of experts cannot follow that. Leave it out, or prune expert_channels instead."
        )
    arguments.router_aux_loss_coef = 0.0


def _check_optimizer(pruning: PruningConfig, arguments: TrainingArguments) -> None:
    """Make sure that the optimizer's state can shrink with the weights."""
    if not pruning.unstructured and pruning.target.ratio > 0.0 and arguments.optim not in SLICEABLE_OPTIMIZERS:
        raise ValueError(
            f"--optim {getattr(arguments.optim, 'value', arguments.optim)!s} keeps a state that cannot be cut with "
            f"the weights. Use one of {', '.join(SLICEABLE_OPTIMIZERS)}."
        )


def _pruning_prompt(pruning: PruningConfig, task: Task) -> str | None:
    """The text before every row, where one was asked for.

    Raises:
        ValueError: rows are no running text.
    """
    prompt = pruning.criterion.prompt_text if isinstance(pruning.criterion, Compresso) else None
    if prompt is not None and task.name != "causal-lm":
        raise ValueError(
            f"--pruning-prompt is for causal language models, and the task of this one is {task.name}. Leave it out."
        )
    return prompt


def _without_repair(pruning: PruningConfig, structure: Structure) -> PruningConfig:
    """Leave the refit out where whole blocks go, or parts of the hidden size: no layer reads these alone."""
    if not structure.spans_blocks or not pruning.repairs:
        return pruning
    if pruning.target.ratio > 0.0:
        (kind,) = structure.kinds
        logger.info("No layer alone reads the dimension '%s', so that cuts are made without a refit.", kind)
    return pruning.changed(repair="none")


def _check_ratio(
    pruning: PruningConfig,
    structure: Structure,
    source: ModelSource,
    options: RunOptions,
    checkpoint: Path | None,
) -> tuple[PruningConfig, SpeedGoal | None]:
    """Turn a goal into a ratio or into widths, and make sure that they can be met."""
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
    """Make sure that biases can make up for what goes, where that was asked for.

    Raises:
        ValueError: they cannot.
    """
    if not isinstance(pruning.repair, Bias) or pruning.target.ratio == 0.0:
        return
    if options.quantization is not None or _quantized(source):
        raise ValueError(
            "--repair bias gives layers a bias, which a quantized base has no place for. Use --repair refit, or leave "
            "the quantization out."
        )
    if bias_switches(source.shapes, structure) and options.save_adapter:
        raise ValueError(
            "--repair bias gives layers a bias that the original checkpoint has no place for, so that the adapter could"
            " not be loaded on it. Leave --save-adapter out, or use --repair refit."
        )


# What the joint recipe settles and refuses where single weights become zero (PST).


def check_pst(pruning: PruningConfig, options: RunOptions) -> tuple[PruningConfig, RunOptions]:
    """The options of a run of PST: without refit, and without measures of what becomes smaller.

    Raises:
        ValueError: something asked for needs a smaller model.
    """
    goal = given_goal(options)
    if goal is not None:
        raise ValueError(f"{goal} was given, and the criterion 'pst' makes weights zero and none fewer. Give a ratio.")
    if options.unrecovered:
        raise ValueError(
            "measure_unrecovered was given, and the criterion 'pst' has no cut to measure without tuning. Leave it out."
        )
    if pruning.target.ratio == 0.0:
        raise ValueError("ratio is 0, which makes no weight zero: it must lie between 0 and 1.")
    return pruning.changed(repair="none"), replace(options, latency=False)
