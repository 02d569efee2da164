"""Checks before any long work: everything a run needs but the weights, cheapest first."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.allocation.allocate import check_reachable, ratio_for_parameters
from loraprune.checkpoint.load import context_of, working_dtype
from loraprune.checkpoint.save import check_relaxed_class
from loraprune.importance.criterion import check_options, check_reach
from loraprune.layers.quantized import is_quantized_model
from loraprune.metrics.perplexity import Collator
from loraprune.pruning.callback import SLICEABLE_OPTIMIZERS
from loraprune.pruning.config import PruningConfig
from loraprune.recipes.steps.folders import check_folders, check_same_adapter, check_space
from loraprune.recipes.steps.prepared import PreparedTraining, saved_dtype
from loraprune.recipes.steps.quantized import check_quantized_base, check_same_quantization
from loraprune.sparsity.pst_layer import check_adapter
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Structure
from loraprune.structure.widths import legal_widths
from loraprune.surgery.bias import bias_switches
from loraprune.tasks.arguments import ModelFacts, given_values, training_arguments
from loraprune.tasks.lora import LoraOptions, lora_config
from loraprune.tasks.options import RunOptions
from loraprune.tasks.rows import check_token_ids, split_rows
from loraprune.tasks.source import find_source, find_tokenizer
from loraprune.tasks.task import Setup, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments


logger = logging.getLogger("loraprune")


def prepare(
    model: str | Path | PreTrainedModel,
    dataset: str | Path | Dataset,
    pruning: PruningConfig,
    training: Mapping[str, Any] | TrainingArguments,
    lora: LoraConfig | LoraOptions | None,
    tokenizer: PreTrainedTokenizerBase | str | Path | None,
    options: RunOptions,
    run_dir: Path,
    *,
    image_processor: Any = None,
    collator: Collator | None = None,
    recovery: bool = False,
    keep_zeros: bool | None = False,
) -> PreparedTraining:
    """Check all that was given, cheapest first, and load everything but the weights."""
    checkpoint = check_folders(options, (model, dataset, tokenizer, image_processor))
    source = find_source(model, options)
    task, config, loaded, shapes = source.task, source.config, source.loaded, source.shapes
    context = context_of(config, shapes) if task.has_tokenizer else None
    facts = ModelFacts(device=source.device, context=context, recomputes=shapes.supports_gradient_checkpointing)
    if pruning.unstructured:
        pruning, options = check_pst(pruning, options)
    arguments, max_length = training_arguments(task, training, facts, run_dir=run_dir, collator=collator)
    if options.output is None:
        arguments.save_strategy = "no"
    check_quantized_base(options, pruning, loaded, recovery=recovery)
    lora = LoraOptions() if lora is None else lora
    structure = describe(shapes, pruning.dimensions, pruning.keep_layers)
    pruning = _without_repair(pruning, structure)
    _settle_router_loss_(arguments, structure)
    pruning = _check_ratio(pruning, structure, config, options)
    _check_bias(pruning, structure, shapes, options, loaded)
    pruning = replace(pruning, seed=arguments.seed)
    _check_optimizer(pruning, arguments)
    check_options(pruning.criterion_options)
    while_training = not pruning.cuts_first
    check_reach(pruning.criterion_name, structure, lora_form=pruning.lora_form, while_training=while_training)
    stored_dtype = saved_dtype(options, config, loaded)
    check_space(structure, stored_dtype, source.device, pruning, arguments, options)
    tokenizer = find_tokenizer(tokenizer, source, options)
    image_processor = task.find_image_processor(image_processor, source.origin, options)
    setup = Setup(
        config=config,
        model=shapes,
        dtype=working_dtype(stored_dtype, source.device) if loaded is None else loaded.dtype,
        processor=image_processor if tokenizer is None else tokenizer,
        max_length=max_length,
        collator=collator,
        options=options,
        prompt=_pruning_prompt(pruning, task),
    )
    rows = split_rows(task, dataset, setup, arguments.seed)
    if tokenizer is not None:
        check_token_ids(rows.prepared.dataset, len(tokenizer), config)
    lora_options = lora if isinstance(lora, LoraOptions) else None
    if isinstance(lora, LoraOptions):
        lora = lora_config(lora, structure, shapes, task, every_group=pruning.criterion == "lora")
    if pruning.unstructured:
        check_adapter(lora)
    if checkpoint is not None:
        check_same_adapter(checkpoint, lora, source.name)
        check_same_quantization(checkpoint, options.quantization)
    return PreparedTraining(
        name=source.name,
        task=task,
        model=loaded,
        config=config,
        tokenizer=tokenizer,
        image_processor=image_processor,
        pruning=pruning,
        arguments=arguments,
        context=context,
        max_length=max_length,
        lora=lora,
        rows=rows,
        structure=structure,
        stored_dtype=stored_dtype,
        device=source.device,
        computing=source.device,
        options=options,
        checkpoint=checkpoint,
        recovery=recovery,
        keep_zeros=keep_zeros,
        base_quantized=options.quantization is not None or (loaded is not None and is_quantized_model(loaded)),
        given=given_values(training),
        lora_options=lora_options,
    )


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
    if not pruning.unstructured and pruning.ratio > 0.0 and arguments.optim not in SLICEABLE_OPTIMIZERS:
        raise ValueError(
            f"--optim {getattr(arguments.optim, 'value', arguments.optim)!s} keeps a state that cannot be cut with "
            f"the weights. Use one of {', '.join(SLICEABLE_OPTIMIZERS)}."
        )


def _pruning_prompt(pruning: PruningConfig, task: Task) -> str | None:
    """The text before every row, where one was asked for.

    Raises:
        ValueError: rows are no running text.
    """
    prompt = pruning.compresso.prompt_text
    if prompt is not None and task.name != "causal-lm":
        raise ValueError(
            f"--pruning-prompt is for causal language models, and the task of this one is {task.name}. Leave it out."
        )
    return prompt


def _without_repair(pruning: PruningConfig, structure: Structure) -> PruningConfig:
    """Leave the refit out where whole blocks go, or parts of the hidden size: no layer reads these alone."""
    if not structure.spans_blocks or not pruning.repairs:
        return pruning
    if pruning.ratio > 0.0:
        (kind,) = structure.kinds
        logger.info("No layer alone reads the dimension '%s', so that cuts are made without a refit.", kind)
    return replace(pruning, repair="none")


def _check_ratio(
    pruning: PruningConfig, structure: Structure, config: PretrainedConfig, options: RunOptions
) -> PruningConfig:
    """Turn a parameter target into a ratio, and make sure that the ratio can be met."""
    if options.target_params is not None:
        pruning = replace(pruning, ratio=ratio_for_parameters(structure, options.target_params))
    if pruning.head_counts == "any":
        check_relaxed_class(structure, config)
    if pruning.ratio > 0.0 and not pruning.unstructured:
        legal = legal_widths(
            structure, channel_multiple=pruning.channel_multiple, head_counts=pruning.legal_head_counts
        )
        check_reachable(structure, pruning.ratio, legal, pruning.allocation)
    return pruning


def _check_bias(
    pruning: PruningConfig,
    structure: Structure,
    shapes: PreTrainedModel,
    options: RunOptions,
    loaded: PreTrainedModel | None,
) -> None:
    """Make sure that biases can make up for what goes, where that was asked for.

    Raises:
        ValueError: they cannot.
    """
    if pruning.repair != "bias" or pruning.ratio == 0.0:
        return
    if options.quantization is not None or (loaded is not None and is_quantized_model(loaded)):
        raise ValueError(
            "--repair bias gives layers a bias, which a quantized base has no place for. Use --repair refit, or leave "
            "the quantization out."
        )
    if bias_switches(shapes, structure) and options.save_adapter:
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
    if options.target_params is not None:
        raise ValueError(
            "target_params was given, and the criterion 'pst' makes weights zero and none fewer. Give a ratio."
        )
    if options.unrecovered:
        raise ValueError(
            "measure_unrecovered was given, and the criterion 'pst' has no cut to measure without tuning. Leave it out."
        )
    if pruning.ratio == 0.0:
        raise ValueError("ratio is 0, which makes no weight zero: it must lie between 0 and 1.")
    return replace(pruning, repair="none"), replace(options, latency=False)
