"""Whether a run may write where it wants to, and where an interrupted one goes on from."""

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
    """Find out whether the run may write where it wants to, and where it goes on from.

    Args:
        options: of the run.
        inputs: the model first, then data, tokenizer and the like: paths, names, or objects.
    """
    output, run_dir = options.output, options.run_dir
    if output is None or run_dir is None:
        return None
    check_result_folder(options, inputs)
    check_state_folder(options, inputs)
    checkpoint = last_checkpoint(run_dir) if run_dir.is_dir() else None
    if options.resume:
        if checkpoint is None:
            raise ValueError(f"There is nothing to resume: {run_dir} holds no saved state. Start without --resume.")
        return usable_checkpoint(run_dir)
    others = checkpoint is not None or any(run_dir.glob(f"{STEP_PREFIX}*.safetensors"))
    if others and not options.overwrite:
        raise ValueError(f"{run_dir} holds an interrupted run. Go on with --resume, or start anew with --overwrite.")
    return None


def check_state_folder(options: RunOptions, inputs: Sequence[object]) -> None:
    """Make sure that the state of a run may be kept beside its output.

    Args:
        options: of the run, which has an output.
        inputs: the model first, then data, tokenizer and the like: paths, names, or objects.

    Raises:
        ValueError: something else is there, or nothing can be written there.
    """
    run_dir = options.run_dir
    assert run_dir is not None
    check_place(run_dir)
    check_apart(run_dir, inputs, around=False)
    if run_dir.is_file():
        raise ValueError(
            f"The state of the run goes to {run_dir}, which is a file. Move it away, or name another output."
        )
    foreign = foreign_entries(run_dir, state=True) if run_dir.is_dir() else []
    if not options.overwrite:  # which removes the folder; what a callback keeps in a checkpoint may stay there
        foreign = [entry for entry in foreign if os.sep not in entry]
    if foreign:
        raise ValueError(
            f"The state of the run goes to {run_dir}, but that folder holds something else ({foreign[0]}). Move it "
            "away, or name another output folder."
        )


def check_result_folder(options: RunOptions, inputs: Sequence[object]) -> None:
    """Make sure that the result may be written and pushed, and that nothing is deleted that the run reads.

    Args:
        options: of the run.
        inputs: the model first, then data, tokenizer and the like: paths, names, or objects.
    """
    if options.output is None:
        return
    check_output(options.output, overwrite=options.overwrite, inputs=(*inputs, *data_places(options.eval_data)))
    model = place_of(inputs[0])
    if isinstance(inputs[0], (str, Path)) and model is not None and options.output.resolve().is_relative_to(model):
        raise ValueError(f"The output folder {options.output} lies in that of the model. Name another one.")
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
    """Make sure that the result fits on the disk, with the refitted weights that each saved state holds."""
    if options.output is None:
        return
    consumers = sum(
        dimension.num_groups * dimension.consumer.group_size * structure.hidden_size for dimension in structure
    )
    states = (arguments.save_total_limit or 2) + 1 if pruning.repairs and arguments.save_strategy != "no" else 0
    in_states = states * consumers * working_dtype(stored, device).itemsize
    check_disk_space(options.output, structure.num_parameters * stored.itemsize + in_states)


def check_same_adapter(checkpoint: Path, lora: LoraConfig, name: str) -> None:
    """Make sure that a run goes on with the model and the adapter that it was started with."""
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
