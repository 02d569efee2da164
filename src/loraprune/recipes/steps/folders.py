"""Checks of the run's folders, and the checkpoint that an interrupted run resumes from."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from loraprune.checkpoint.load import working_dtype
from loraprune.checkpoint.save import check_disk_space
from loraprune.data.named import data_places
from loraprune.processes.ranks import from_main
from loraprune.pruning.config import PruningConfig
from loraprune.pruning.resume import last_checkpoint, usable_checkpoint
from loraprune.record.places import check_place, place_of
from loraprune.record.replaceable import check_apart, check_output, foreign_entries
from loraprune.record.saved_steps import STEP_PREFIX
from loraprune.structure.dimensions import Structure
from loraprune.tasks.options import RunOptions

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import TrainingArguments

logger = logging.getLogger("loraprune")


def check_folders(options: RunOptions, inputs: Sequence[object]) -> Path | None:
    """Check the output folder and the run's folder, and return the checkpoint to resume from, or None.

    Args:
        options: options of the run.
        inputs: model, data, tokenizer and so on, in this order: paths, names or objects.

    Raises:
        ValueError: a folder cannot be used, or there is nothing to resume.
    """
    output, run_dir = options.output, options.run_dir
    if output is None or run_dir is None:
        return None
    check_result_folder(options, inputs)
    check_state_folder(options, inputs)
    checkpoint = last_checkpoint(run_dir) if run_dir.is_dir() else None
    if options.resume:
        if checkpoint is None:
            raise ValueError(f"There is nothing to resume: {run_dir} has no saved state. Start without --resume.")
        return usable_checkpoint(run_dir)
    others = checkpoint is not None or any(run_dir.glob(f"{STEP_PREFIX}*.safetensors"))
    if others and not options.overwrite:
        raise ValueError(
            f"{run_dir} holds an interrupted run. Continue it with --resume, or start again with --overwrite."
        )
    return None


def check_state_folder(options: RunOptions, inputs: Sequence[object]) -> None:
    """Check that the run's state can be saved beside its output.

    Args:
        options: options of the run, with an output.
        inputs: model, data, tokenizer and so on, in this order: paths, names or objects.

    Raises:
        ValueError: the folder has other contents, or cannot be written.
    """
    run_dir = options.run_dir
    assert run_dir is not None
    check_place(run_dir)
    check_apart(run_dir, inputs, around=False)
    if run_dir.is_file():
        raise ValueError(
            f"The run saves its state in {run_dir}, which is a file. Move it away, or name another output."
        )
    foreign = foreign_entries(run_dir, state=True) if run_dir.is_dir() else []
    if not options.overwrite:  # overwrite removes the folder; files of callbacks in checkpoints may stay
        foreign = [entry for entry in foreign if os.sep not in entry]
    if foreign:
        raise ValueError(
            f"The run saves its state in {run_dir}, which has other contents ({foreign[0]}). Move them away, or name "
            "another output folder."
        )


def check_result_folder(options: RunOptions, inputs: Sequence[object]) -> None:
    """Check that the result can be written and pushed, and that the run does not delete its own inputs.

    Args:
        options: options of the run.
        inputs: model, data, tokenizer and so on, in this order: paths, names or objects.

    Raises:
        ValueError: the folder or the repository cannot be used.
    """
    if options.output is None:
        return
    check_output(options.output, overwrite=options.overwrite, inputs=(*inputs, *data_places(options.eval_data)))
    model = place_of(inputs[0])
    if isinstance(inputs[0], (str, Path)) and model is not None and options.output.resolve().is_relative_to(model):
        raise ValueError(f"The output folder {options.output} is inside the model's folder. Name another one.")
    target = options.hub_target()
    if target is not None:
        logger.info("The result will be pushed to %s", from_main(target.check))


def check_space(
    structure: Structure,
    stored: torch.dtype,
    device: torch.device,
    pruning: PruningConfig,
    arguments: TrainingArguments,
    options: RunOptions,
) -> None:
    """Check that the disk has room for the result and for the repaired weights in each saved state."""
    if options.output is None:
        return
    consumers = sum(
        dimension.num_groups * dimension.consumer.group_size * structure.hidden_size for dimension in structure
    )
    states = (arguments.save_total_limit or 2) + 1 if pruning.repairs and arguments.save_strategy != "no" else 0
    in_states = states * consumers * working_dtype(stored, device).itemsize
    check_disk_space(options.output, structure.num_parameters * stored.itemsize + in_states)


def check_same_adapter(checkpoint: Path, lora: LoraConfig, name: str) -> None:
    """Check that a resumed run has the model and the adapter that it was started with."""
    saved = json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
    if isinstance(lora.init_lora_weights, str) and lora.init_lora_weights != "gaussian":
        raise ValueError(
            f"A run with init_lora_weights={lora.init_lora_weights!r} changes the base and cannot be resumed."
        )
    before = {"model": saved.get("base_model_name_or_path"), "r": saved["r"], "alpha": saved["lora_alpha"]}
    now = {"model": name, "r": lora.r, "alpha": lora.lora_alpha}
    changed = [f"{key}: {before[key]} -> {now[key]}" for key in now if before[key] not in (None, "", now[key])]
    if not isinstance(lora.target_modules, str) and set(saved["target_modules"]) != set(lora.target_modules or []):
        changed.append("target modules")
    if isinstance(lora.target_modules, str) and lora.target_modules not in ("all-linear", saved["target_modules"]):
        changed.append("target modules")
    if changed:
        raise ValueError(
            f"The interrupted run was started differently ({', '.join(changed)}). Resume it with the same options, or "
            "start anew with --overwrite."
        )
