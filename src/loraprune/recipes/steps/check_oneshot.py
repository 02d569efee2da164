"""Checks before pruning without training: everything that a run needs except the weights, cheapest first."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from loraprune.allocation.allocate import check_reachable
from loraprune.checkpoint.load import DTYPES, default_device
from loraprune.checkpoint.save import check_disk_space, check_relaxed_class
from loraprune.checkpoint.source import ModelSource
from loraprune.data.named import data_places, find_sources
from loraprune.measure.width_times import SpeedGoal
from loraprune.pruning.oneshot_config import OneshotConfig, SparseConfig
from loraprune.recipes.steps.folders import check_result_folder
from loraprune.recipes.steps.goals import check_goals, given_goal, settle_goals
from loraprune.recipes.steps.oneshot_state import check_oneshot_folder, check_same_oneshot, widths_of_begun_run
from loraprune.recipes.steps.prepared import PreparedOneshot, RunInputs, find_source
from loraprune.sparsity.whole_model import check_widths
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Structure
from loraprune.surgery.bias import bias_switches
from loraprune.surgery.repairs import Bias
from loraprune.tasks.arguments import check_length
from loraprune.tasks.options import RunOptions
from loraprune.tasks.rows import rows_to_measure_on, split_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from loraprune.data.named import Data

logger = logging.getLogger("loraprune")

MAX_LENGTH = 2048


def prepare_oneshot(
    model: str | Path | PreTrainedModel,
    data: Data | None,
    oneshot: OneshotConfig | SparseConfig,
    inputs: RunInputs,
) -> PreparedOneshot:
    """Check all inputs, cheapest first, and load everything except the weights."""
    options = inputs.options
    data = None if data is None else find_sources(data)
    read = (model, *data_places(data), inputs.tokenizer, inputs.image_processor)
    check_result_folder(options, read)
    _check_options(oneshot, options)
    check_oneshot_folder(options, read)
    if data is None and oneshot.needs_data:
        raise ValueError(_missing_data(oneshot))
    if isinstance(oneshot, SparseConfig):
        options = replace(options, latency=False)  # zeros make nothing faster
    source, task = find_source(model, inputs)
    goal = None
    max_length = _max_length(oneshot, source.context) if task.has_tokenizer else None
    if isinstance(oneshot, SparseConfig):
        structure = describe(source.shapes, None, oneshot.keep_layers)
        check_widths(source.shapes, structure, oneshot.criterion, oneshot.pattern)
    else:
        structure = describe(source.shapes, oneshot.target.dimensions, oneshot.target.keep_layers)
        oneshot, goal = _check_groups(oneshot, structure, source, options)
    home, computing = _devices(oneshot, source, structure)
    prepared = PreparedOneshot(
        source=source,
        task=task,
        image_processor=task.find_image_processor(inputs.image_processor, source),
        max_length=max_length,
        structure=structure,
        device=home,
        computing=computing,
        options=options,
        oneshot=oneshot,
        goal=goal,
    )
    if options.output is not None:
        check_disk_space(
            options.output, structure.num_parameters * prepared.saved_dtype.itemsize + _state_bytes(prepared)
        )
    setup = prepared.setup(inputs.collator)
    if data is None:
        prepared.take_rows_(rows_to_measure_on(task, setup))
    else:
        prepared.take_rows_(split_rows(task, data, setup, oneshot.seed, oneshot.calibration_sequences))
    check_same_oneshot(prepared)
    return prepared


def _state_bytes(prepared: PreparedOneshot) -> int:
    """Return the bytes of the run's saved state: the finished blocks of every cut."""
    cuts = getattr(prepared.oneshot, "cuts", 1)
    size = prepared.structure.num_parameters * prepared.computed_dtype.itemsize
    return cuts * size if prepared.oneshot.needs_data else 0


def _check_options(oneshot: OneshotConfig | SparseConfig, options: RunOptions) -> None:
    """Refuse options of runs with training, and two options that both set the amount to remove."""
    for name in ("allow_changes", "keep_run", "save_adapter", "fsdp"):
        if getattr(options, name):
            raise ValueError(f"{name} is an option for runs with training, and oneshot has none. Leave it out.")
    if options.quantization is not None or options.keep_quantized:
        raise ValueError(
            "Pruning without training needs weights in 16 or 32 bits, and works block by block, so a quantized base "
            "would save little. Leave the quantization out."
        )
    check_goals(options)
    goal = given_goal(options)
    if goal is not None and isinstance(oneshot, SparseConfig):
        raise ValueError(f"{goal} sets the size of the model, and a sparsity does not change it. Leave one out.")


def _missing_data(oneshot: OneshotConfig | SparseConfig) -> str:
    """Return the message about missing calibration data."""
    if isinstance(oneshot, SparseConfig) or oneshot.criterion.reads_data:
        return f"The criterion {oneshot.name} needs calibration data. Pass --data DATA."
    return (
        f"The repair {oneshot.repair.name!r} needs calibration data (the criterion {oneshot.name} does not). Pass "
        "--data DATA, or --repair none."
    )


def _max_length(oneshot: OneshotConfig | SparseConfig, context: int | None) -> int:
    if oneshot.max_length is None:
        return min(MAX_LENGTH, context or MAX_LENGTH)
    check_length(oneshot.max_length, context)
    return oneshot.max_length


def _check_groups(
    oneshot: OneshotConfig, structure: Structure, source: ModelSource, options: RunOptions
) -> tuple[OneshotConfig, SpeedGoal | None]:
    """Convert a goal to a ratio or to widths, and check that they can be reached and repaired."""
    oneshot.criterion.check(structure, while_training=False)
    stored = source.stored_dtype if options.dtype is None else DTYPES[options.dtype]
    oneshot, goal = settle_goals(oneshot, structure, source, options, stored, begun=widths_of_begun_run(options))
    target = oneshot.target
    if structure.spans_blocks and not oneshot.repair.reads_data:
        logger.info("No single layer reads the dimension '%s', so nothing is repaired.", structure.kinds[0])
    if target.head_counts == "any":
        check_relaxed_class(structure, source.config)
    if isinstance(oneshot.repair, Bias):
        bias_switches(source.shapes, structure)
    check_reachable(structure, target.ratio, target.legal_widths(structure), target.allocation or "uniform")
    return oneshot, goal


def _devices(
    oneshot: OneshotConfig | SparseConfig, source: ModelSource, structure: Structure
) -> tuple[torch.device, torch.device]:
    """Return the device that holds weights and hidden states, and the device that computes."""
    if not oneshot.offload:
        return source.device, source.device
    if structure.spec.decoder is None:
        raise ValueError(
            f"offload works block by block, and the blocks of a {structure.spec.model_type} model exchange more than "
            "hidden states. Leave it out."
        )
    home = torch.device("cpu") if source.loaded is None else source.device
    if home.type != "cpu":
        raise ValueError("offload keeps the weights in CPU memory: pass a model that is on the CPU.")
    computing = default_device()
    if isinstance(oneshot, OneshotConfig) and oneshot.criterion.reads_gradients and computing != home:
        raise ValueError(
            f"The criterion {oneshot.name} needs gradients of the whole model, which offload does not support. Choose "
            "osscar, flap or wanda, or leave offload out."
        )
    return home, computing
