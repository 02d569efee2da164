"""Runs with a sharded base (FSDP2): supported options, and gathering of the result."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from loraprune.checkpoint.finite import check_finite
from loraprune.checkpoint.save import finish
from loraprune.checkpoint.sharded import forget_
from loraprune.importance.criterion_config import OwnCriterion
from loraprune.processes.ranks import is_main, launched
from loraprune.processes.sharding import gather_
from loraprune.surgery.merging import cast_, merged

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn
    from transformers import PreTrainedModel

    from loraprune.checkpoint.source import ModelSource
    from loraprune.pruning.config import PruningConfig
    from loraprune.pruning.run import PruningRun
    from loraprune.recipes.steps.prepared import PreparedTraining
    from loraprune.structure.dimensions import Structure
    from loraprune.tasks.options import RunOptions
    from loraprune.tasks.task import Task

OLDEST_TORCH = "2.8"
"""Oldest PyTorch with which transformers shards weights."""


_TAKEN_OVER = "LORAPRUNE_USE_FSDP"


def _says(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")


def settle_strategy(options: RunOptions) -> RunOptions:
    """Read the FSDP setting of ``accelerate launch`` and hide it from accelerate.

    accelerate would wrap the model once, and a cut changes its shapes later.

    Raises:
        ValueError: the setting is not supported.
    """
    if not _says("ACCELERATE_USE_FSDP"):
        return replace(options, fsdp=2) if _says(_TAKEN_OVER) else options
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(
            f"The accelerate configuration asks for FSDP, version {version}. Set fsdp_version: 2 in it, or use "
            "--fsdp 2 and leave FSDP out of it."
        )
    del os.environ["ACCELERATE_USE_FSDP"]
    os.environ[_TAKEN_OVER] = "true"  # for the next run of this process
    return replace(options, fsdp=2)


def settle_sharing(options: RunOptions, source: ModelSource, task: Task, pruning: PruningConfig) -> RunOptions:
    """Check that the weights of a run can be sharded, if ``fsdp`` is set, and switch off the latency measurement.

    Raises:
        ValueError: they cannot.
    """
    options = settle_strategy(options)
    if not options.sharded:
        return options
    fault = _fault(options, source, task, pruning)
    if fault is not None:
        raise ValueError(f"With --fsdp 2, {fault}")
    return replace(options, latency=False)


def _fault(options: RunOptions, source: ModelSource, task: Task, pruning: PruningConfig) -> str | None:
    """Explain why the weights of a run cannot be sharded; None if they can."""
    if launched() == 1:
        return "processes share the weights, and this run has one process. Start it with torchrun, or leave it out."
    if torch.__version__ < OLDEST_TORCH:  # torch compares versions, not strings
        return (
            f"PyTorch {OLDEST_TORCH} or newer is needed, and this is {torch.__version__}. Install it, or leave it out."
        )
    if task.name != "causal-lm":
        return f"only causal language models can be sharded, and this model's task is {task.name}. Leave it out."
    if source.loaded is not None:
        return "each process reads its own part of the weights. Pass the name of the checkpoint instead of the model."
    if source.adapter is not None or source.packed or options.quantization is not None:
        what = "quantized" if options.quantization is not None else "an adapter" if source.adapter else "packed"
        return f"the base must be a plain checkpoint in 16 or 32 bits, and this one is {what}. Leave it out."
    if not getattr(source.shapes, "fsdp_plan", None):
        return (
            f"transformers must support sharding of the model type {source.config.model_type!r}, and does not. Leave "
            "it out."
        )
    return _fault_of(options, pruning)


def _fault_of(options: RunOptions, pruning: PruningConfig) -> str | None:
    """Explain why the options do not support sharding; None if they do."""
    if pruning.unstructured:
        return f"the criterion {pruning.criterion_name!r} would mask sharded weights. Leave it out."
    if isinstance(pruning.criterion, OwnCriterion):
        return "a criterion of your own would read sharded weights. Choose one of ours, or leave --fsdp out."
    if pruning.cuts_first and pruning.target.ratio > 0.0:
        return (
            "a run cannot cut before the first step. Cut first (loraprune oneshot MODEL --data DATA -o PRUNED, which "
            "has --offload for large models), then tune (loraprune recover PRUNED --fsdp 2)."
        )
    if options.unrecovered:
        return "a second model cannot be measured. Leave --measure-unrecovered out."
    if options.speedup is not None:
        return "blocks cannot be timed. Use --ratio or --widths instead of --speedup."
    return None


def check_shareable(
    options: RunOptions, structure: Structure, lora: LoraConfig, pruning: PruningConfig, shapes: PreTrainedModel
) -> None:
    """Check that adapter and repair support a sharded base.

    Args:
        options: options of the run.
        structure: structure of the model.
        lora: configuration of the adapter.
        pruning: pruning configuration.
        shapes: the model on the device ``meta``.

    Raises:
        ValueError: they do not.
    """
    if not options.sharded:
        return
    if structure.spec.decoder is None and pruning.repairs and pruning.target.ratio > 0.0:
        raise ValueError(
            f"With --fsdp 2, blocks are repaired one by one, and the blocks of a {structure.spec.model_type} model "
            "exchange more than hidden states. Use --repair none."
        )
    if any(dimension.of_experts for dimension in structure):
        raise ValueError(
            "With --fsdp 2, mixtures of experts cannot be tuned: if one process does not use an expert in a step, the "
            "others would wait for it. Leave it out."
        )
    if _targets_embeddings(lora, shapes):
        raise ValueError(
            "With --fsdp 2, LoRA can only adapt layers of the blocks, and target_modules names the embedding or the "
            "head. Leave it out."
        )
    if lora.bias != "none":
        raise ValueError(f"With --fsdp 2, LoRA cannot train biases, and bias is {lora.bias!r}. Leave it out.")
    plain = ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters")
    fault = next((name for name in plain if getattr(lora, name, None)), None)
    if fault is None and lora.init_lora_weights not in (True, False, "gaussian"):
        fault = "init_lora_weights"
    if fault is not None:
        raise ValueError(
            f"With --fsdp 2, the adapter must be plain LoRA, which does not read the base's weights, and {fault} is "
            f"{getattr(lora, fault)!r}. Leave one of them out."
        )


def _targets_embeddings(lora: LoraConfig, shapes: PreTrainedModel) -> bool:
    """Return whether an adapter targets the embedding or the head."""
    ends: Any = (shapes.get_input_embeddings(), shapes.get_output_embeddings())
    names = [name for name, module in shapes.named_modules() if any(module is end for end in ends if end is not None)]
    targets = lora.target_modules or ()
    if isinstance(targets, str):
        return targets != "all-linear" and any(re.fullmatch(targets, name) for name in names)
    return any(name == target or name.endswith(f".{target}") for name in names for target in targets)


def shared_among(options: RunOptions) -> str:
    """Return the part of the loading message about sharding."""
    return f", sharded over {launched()} processes" if options.sharded else ""


def let_replicate_(trainer: Any) -> None:
    """Let a Trainer keep the adapter of a sharded model equal in all processes, and save states as usual.

    For a model that transformers itself loads sharded, it does the former but does not save the optimizer's state,
    which is whole in every process here.
    """
    trainer.is_distributed_loading_by_transformers = True


def merged_shares(prepared: PreparedTraining, model: nn.Module) -> PreTrainedModel:
    """Return the merged result while it is still sharded, for measuring by all processes together.

    Raises:
        NonFiniteWeightsError: the result is to be saved, and a weight is NaN or infinite.
    """
    plain = merged(model, prepared.saved_dtype)
    cast_(plain, prepared.saved_dtype)
    plain.__dict__.pop("forward", None)  # trl's
    if prepared.options.output is not None:
        check_finite(plain)
    return plain.eval()


def made_whole(prepared: PreparedTraining, model: PreTrainedModel, run: PruningRun) -> PreTrainedModel:
    """Gather a sharded result in the first process; return a model that is not sharded as it is.

    The other processes only keep its shapes, on the device ``meta``.
    """
    if not prepared.options.sharded:
        return model
    gather_(model, keep=is_main())
    forget_(model)
    return finish(model, run.structure, run.plan, dtype=prepared.saved_dtype)
