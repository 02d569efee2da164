"""Checks before pruning without training: everything a run needs but the weights, cheapest first."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprune.allocation.allocate import check_reachable, ratio_for_parameters
from loraprune.checkpoint.load import context_of, default_device, working_dtype
from loraprune.checkpoint.save import check_disk_space, check_relaxed_class
from loraprune.importance.criterion import check_reach
from loraprune.metrics.perplexity import Collator
from loraprune.pruning.oneshot import GRADIENT_METHODS
from loraprune.pruning.oneshot_config import OneshotConfig
from loraprune.recipes.steps.folders import check_result_folder
from loraprune.recipes.steps.prepared import PreparedOneshot, legal_widths_for, saved_dtype
from loraprune.sparsity.whole_model import check_widths
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Structure
from loraprune.surgery.bias import bias_switches
from loraprune.tasks.arguments import check_length
from loraprune.tasks.options import RunOptions
from loraprune.tasks.rows import SplitRows, check_token_ids, rows_to_measure_on, split_rows
from loraprune.tasks.source import ModelSource, find_source, find_tokenizer
from loraprune.tasks.task import Setup

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("loraprune")

MAX_LENGTH = 2048


def prepare_oneshot(
    model: str | Path | PreTrainedModel,
    dataset: str | Path | Dataset | None,
    oneshot: OneshotConfig,
    tokenizer: PreTrainedTokenizerBase | str | Path | None,
    options: RunOptions,
    *,
    image_processor: Any = None,
    collator: Collator | None = None,
) -> PreparedOneshot:
    """Check all that was given, cheapest first, and load everything but the weights."""
    check_result_folder(options, (model, dataset, tokenizer, image_processor))
    _check_options(oneshot, options)
    if dataset is None and oneshot.needs_data:
        raise ValueError(_missing_data(oneshot))
    if not oneshot.structured:
        options = replace(options, latency=False)  # zeros make nothing faster
    source = find_source(model, options)
    task, shapes = source.task, source.shapes
    context = context_of(source.config, shapes) if task.has_tokenizer else None
    max_length = _max_length(oneshot, context) if task.has_tokenizer else None
    structure = describe(shapes, oneshot.dimensions, oneshot.keep_layers)
    ratio = _check_structured(oneshot, structure, source, options) if oneshot.structured else 0.0
    if not oneshot.structured:
        check_widths(shapes, structure, oneshot.sparsity_options())
    home, computing = _devices(oneshot, source, structure)
    stored_dtype = saved_dtype(options, source.config, source.loaded)
    if options.output is not None:
        check_disk_space(options.output, structure.num_parameters * stored_dtype.itemsize)
    tokenizer = find_tokenizer(tokenizer, source, options)
    image_processor = task.find_image_processor(image_processor, source.origin, options)
    setup = Setup(
        config=source.config,
        model=shapes,
        dtype=working_dtype(stored_dtype, computing) if source.loaded is None else source.loaded.dtype,
        processor=image_processor if tokenizer is None else tokenizer,
        max_length=max_length,
        collator=collator,
        options=options,
    )
    rows = _rows(dataset, setup, task, oneshot)
    if tokenizer is not None and len(rows.prepared.dataset):
        check_token_ids(rows.prepared.dataset, len(tokenizer), source.config)
    return PreparedOneshot(
        name=source.name,
        task=task,
        model=source.loaded,
        config=source.config,
        tokenizer=tokenizer,
        image_processor=image_processor,
        context=context,
        max_length=max_length,
        rows=rows,
        structure=structure,
        stored_dtype=stored_dtype,
        device=home,
        options=options,
        oneshot=oneshot,
        ratio=ratio,
        computing=computing,
    )


def _check_options(oneshot: OneshotConfig, options: RunOptions) -> None:
    """Refuse what only a run with training has, and two ways to say how much goes."""
    for name in ("resume", "keep_run", "save_adapter"):
        if getattr(options, name):
            raise ValueError(f"{name} is an option of runs with training, and this one has none. Leave it out.")
    if options.quantization is not None or options.keep_quantized:
        raise ValueError(
            "Pruning without training reads and writes weights in 16 or 32 bits, block by block, and a quantized base "
            "would save little. Leave the quantization out."
        )
    if options.target_params is not None and not oneshot.structured:
        raise ValueError("target_params says how much smaller the model becomes, and a sparsity leaves its size alone.")


def _missing_data(oneshot: OneshotConfig) -> str:
    """What looks at the data that were not given, and the way out."""
    if oneshot.scores_need_data:
        return f"The criterion {oneshot.name} looks at calibration data, and none were given. Say --data DATA."
    repair = oneshot.value("repair")
    return (
        f"The repair {repair!r} looks at calibration data, and none were given (the criterion {oneshot.name} needs "
        "none). Say --data DATA, or --repair none."
    )


def _rows(dataset: str | Path | Dataset | None, setup: Setup, task: Any, oneshot: OneshotConfig) -> SplitRows:
    if dataset is None:
        return rows_to_measure_on(task, setup)
    return split_rows(task, dataset, setup, oneshot.seed)


def _max_length(oneshot: OneshotConfig, context: int | None) -> int:
    if oneshot.max_length is None:
        return min(MAX_LENGTH, context or MAX_LENGTH)
    check_length(oneshot.max_length, context)
    return oneshot.max_length


def _check_structured(oneshot: OneshotConfig, structure: Structure, source: ModelSource, options: RunOptions) -> float:
    """The ratio, once it is sure that it can be met and that the repair is possible."""
    ratio = oneshot.ratio
    if options.target_params is not None:
        ratio = ratio_for_parameters(structure, options.target_params)
    assert ratio is not None
    check_reach(oneshot.name, structure, what="criterion", while_training=False)
    if structure.spans_blocks:
        logger.info("No layer alone reads the dimension '%s', so that nothing is repaired.", structure.kinds[0])
    if oneshot.head_counts == "any":
        check_relaxed_class(structure, source.config)
    if oneshot.value("repair") == "bias":
        bias_switches(source.shapes, structure)
    check_reachable(structure, ratio, legal_widths_for(structure, oneshot), oneshot.value("allocation"))
    return ratio


def _devices(oneshot: OneshotConfig, source: ModelSource, structure: Structure) -> tuple[torch.device, torch.device]:
    """Where weights and hidden states are kept, and what computes."""
    if not oneshot.offload:
        return source.device, source.device
    if structure.spec.decoder is None:
        raise ValueError(
            f"offload goes through a model block by block, and the blocks of a {structure.spec.model_type} model hand "
            "each other more than hidden states. Leave it out."
        )
    home = torch.device("cpu") if source.loaded is None else source.device
    if home.type != "cpu":
        raise ValueError("offload keeps the weights in the machine's memory: pass a model that is on the CPU.")
    computing = default_device()
    if oneshot.structured and oneshot.name in GRADIENT_METHODS and computing != home:
        raise ValueError(
            f"The criterion {oneshot.name} takes gradients of the whole model, which does not go with offload. Choose "
            "osscar, flap or wanda, or leave offload out."
        )
    return home, computing
