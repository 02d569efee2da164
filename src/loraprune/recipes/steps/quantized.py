"""Runs with a quantized base: the exact weights for repairs, and the result."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from loraprune.checkpoint.finite import check_finite
from loraprune.checkpoint.save import finish
from loraprune.layers.axes import base_weight
from loraprune.layers.quantized import is_quantized_model, prepare_, quantized_layers, set_source_
from loraprune.layers.unwrap import base_model
from loraprune.measure.benchmark.memory import free_memory
from loraprune.recipes.steps.sharded import merged_shares

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import nn
    from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

    from loraprune.pruning.config import PruningConfig
    from loraprune.pruning.run import PruningRun
    from loraprune.recipes.steps.prepared import PreparedRun, PreparedTraining
    from loraprune.tasks.options import RunOptions

logger = logging.getLogger("loraprune")

_STATE_FILE = "loraprune_base.json"
READS_BASE_WEIGHTS = ("pst",)
"""Criteria that mask single base weights, which quantized layers do not support."""


FOLDED = ("compresso",)
"""Criteria whose gates become part of the consumers' weights."""


def check_quantized_base(
    options: RunOptions, pruning: PruningConfig, loaded: nn.Module | None, *, recovery: bool = False
) -> None:
    """Check that the other options support a quantized base.

    Raises:
        ValueError: they do not.
    """
    quantized = options.quantization is not None if loaded is None else is_quantized_model(loaded)
    if options.quantization is not None and loaded is not None:
        raise ValueError(
            f"quantization is {options.quantization!r}, and the model was passed in: quantize it as you load it "
            "(quantization_config of from_pretrained), or pass the name of its checkpoint."
        )
    if options.keep_quantized and not quantized:
        raise ValueError(
            "keep_quantized (--keep-quantized) needs a quantized base. Use --load-in-8bit, --load-in-4bit or "
            "--quantization, or leave it out."
        )
    if quantized and recovery:
        raise ValueError(
            "recover needs weights in 16 or 32 bits to see which ones are zero. Leave the quantization out."
        )
    if quantized and pruning.cuts_first and pruning.target.ratio > 0.0:
        raise ValueError(
            "The base is quantized, and a cut before the first step (prune_end is 0) needs weights in 16 or 32 bits. "
            "Leave the quantization out, or set --prune-end above 0."
        )
    if quantized and pruning.unstructured:
        raise ValueError(
            f"The criterion {pruning.criterion_name!r} masks single base weights, and the base is quantized. "
            "Use 'fisher' or 'lora', or leave the quantization out."
        )


def attach_originals_(prepared: PreparedTraining, model: PreTrainedModel) -> None:
    """Attach to each consumer of a quantized model the weight that it was quantized from, as a start for repairs.

    These weights are in CPU memory, in the dtype of the result. All others are read from the checkpoint at the end.
    """
    names = refitted_layers(prepared)
    if prepared.options.quantization is None or not names:
        return
    original = load_original(prepared)
    for name, layer in quantized_layers(model):
        if name in names:
            set_source_(layer, base_weight(original.get_submodule(name)).to(prepared.saved_dtype))


def load_original(prepared: PreparedRun) -> PreTrainedModel:
    """Load the checkpoint's model in the dtype of the result, in CPU memory."""
    return prepared.source.load(prepared.saved_dtype, torch.device("cpu"))


def refitted_layers(prepared: PreparedTraining) -> Collection[str]:
    """Return the names of the layers whose weights a run changes by repairs or folded gates."""
    changes = prepared.pruning.repairs or prepared.pruning.criterion.learns
    if not changes or prepared.pruning.target.ratio == 0.0:
        return ()
    return {dimension.consumer.module for dimension in prepared.structure}


def finished_model(prepared: PreparedTraining, model: nn.Module, run: PruningRun) -> PreTrainedModel:
    """Return the merged result of a run, quantized again with ``keep_quantized``.

    Raises:
        NonFiniteWeightsError: the result is to be saved, and a weight is NaN or infinite.
    """
    if prepared.options.sharded:
        return merged_shares(prepared, model)
    quantized = is_quantized_model(model)
    quantization = base_model(model).config.quantization_config if quantized else None
    original = load_original(prepared) if quantized and prepared.options.quantization is not None else None
    finished: Any = finish(
        model,
        run.structure,
        run.plan,
        dtype=prepared.saved_dtype,
        original=original,
        refitted=refitted_layers(prepared) if quantized else (),
    )
    if prepared.options.output is not None:
        check_finite(finished)  # before measuring
    if not quantized:
        return finished
    if prepared.options.keep_quantized:
        return _quantized_again(finished, quantization, prepared)
    needed = finished.num_parameters() * max(prepared.saved_dtype.itemsize, 2)
    if prepared.device.type != "cpu" and needed * 1.2 < free_memory(prepared.device):
        finished.to(prepared.device)
    return finished


def is_measurable(prepared: PreparedTraining, merged: PreTrainedModel) -> bool:
    """Return whether a result is on the computing device; merged from a quantized base, it may be too large."""
    if merged.device.type == prepared.computing.type:
        return True
    logger.info("The result is too large to measure on %s.", prepared.computing)
    return False


def _quantized_again(finished: PreTrainedModel, quantization: Any, prepared: PreparedTraining) -> PreTrainedModel:
    """Quantize a finished model like its base, by saving and loading it."""
    auto: Any = type(finished)
    with tempfile.TemporaryDirectory(prefix="loraprune-") as folder:
        finished.save_pretrained(folder)
        name = finished.config._name_or_path
        quantized: PreTrainedModel = auto.from_pretrained(
            folder,
            quantization_config=quantization,
            dtype=prepared.saved_dtype,
            device_map={"": prepared.device},
            use_safetensors=True,
        )
    quantized.config._name_or_path = name
    prepare_(quantized)
    return quantized.eval()


def quantization_notes(prepared: PreparedTraining) -> tuple[str, ...]:
    """Return notes for the report about the base; empty if it was not quantized."""
    name = prepared.options.quantization
    if name is None and not prepared.base_quantized:
        return ()
    measured = (
        f"The base was quantized ({name or 'as passed in'}) during tuning and pruning. The dense model's quality was "
        "measured on the quantized base; its size and latency are those of the original."
    )
    if prepared.options.keep_quantized:
        return (f"{measured} The result was quantized in the same way after the merge.",)
    if name is None:
        return (
            f"{measured} Because the model was passed in, the result is merged from the dequantized weights and has "
            "the error of quantization. Pass the checkpoint's name and a quantization to merge into its weights.",
        )
    dtype = str(prepared.saved_dtype).removeprefix("torch.")
    return (f"{measured} The result is merged in {dtype} from the checkpoint's own weights.",)


def adapter_in_32_bits_(model: nn.Module) -> None:
    """Cast the adapter of a quantized base to 32 bits: in trl's bfloat16, rounding would lose small updates."""
    if not is_quantized_model(model):
        return
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.float()


class RememberQuantization(TrainerCallback):
    """Writes the base's quantization into each checkpoint, because the adapter was tuned for it."""

    def __init__(self, quantization: str | None) -> None:
        self._quantization = quantization

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write into the checkpoint that the Trainer has written."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if folder.is_dir() and state.is_world_process_zero:
            (folder / _STATE_FILE).write_text(json.dumps({"quantization": self._quantization}), encoding="utf-8")


def check_same_quantization(checkpoint: Path, quantization: str | None) -> None:
    """Check that a resumed run has the quantization that it was started with.

    Raises:
        ValueError: it has another one.
    """
    path = checkpoint / _STATE_FILE
    before = json.loads(path.read_text(encoding="utf-8"))["quantization"] if path.is_file() else None
    if before != quantization:
        raise ValueError(
            f"The interrupted run was started with quantization {before}, and not {quantization}. Resume it with the "
            "same options, or start anew with --overwrite."
        )
