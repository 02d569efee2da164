"""Runs whose base is quantized: where the exact weights come from, and what becomes of them in the end."""

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
"""Criteria that mask single base weights, of which a quantized layer has none."""


FOLDED = ("compresso",)
"""Criteria whose gates become part of the consumers' weights."""


def check_quantized_base(
    options: RunOptions, pruning: PruningConfig, loaded: nn.Module | None, *, recovery: bool = False
) -> None:
    """Make sure that a quantized base goes with everything else that was asked for.

    Raises:
        ValueError: it does not.
    """
    quantized = options.quantization is not None if loaded is None else is_quantized_model(loaded)
    if options.quantization is not None and loaded is not None:
        raise ValueError(
            f"quantization is {options.quantization!r}, and the model was passed in: quantize it as you load it "
            "(quantization_config of from_pretrained), or pass the name of its checkpoint."
        )
    if options.keep_quantized and not quantized:
        raise ValueError(
            "keep_quantized (--keep-quantized) saves the result as the base is quantized, and it is not: say "
            "--load-in-8bit, --load-in-4bit or --quantization, or leave it out."
        )
    if quantized and recovery:
        raise ValueError(
            "recover tunes weights in 16 or 32 bits only, so that it can tell which are zero. Leave the quantization "
            "out."
        )
    if quantized and pruning.cuts_first and pruning.target.ratio > 0.0:
        raise ValueError(
            "All is to be cut before the first step (prune_end is 0), which reads and writes weights in 16 or 32 bits, "
            "and the base is quantized. Leave the quantization out, or say a --prune-end above 0."
        )
    if quantized and pruning.unstructured:
        raise ValueError(
            f"The criterion {pruning.criterion_name!r} masks single base weights, and the base is quantized. "
            "Use 'fisher' or 'lora', or leave the quantization out."
        )


def attach_originals_(prepared: PreparedTraining, model: PreTrainedModel) -> None:
    """Give each consumer of a quantized model the weight that it was quantized from, for refits to start from.

    These are in CPU memory, in the dtype of the result. The others are read from the checkpoint in the end.
    """
    names = refitted_layers(prepared)
    if prepared.options.quantization is None or not names:
        return
    original = load_original(prepared)
    for name, layer in quantized_layers(model):
        if name in names:
            set_source_(layer, base_weight(original.get_submodule(name)).to(prepared.saved_dtype))


def load_original(prepared: PreparedRun) -> PreTrainedModel:
    """The model of the checkpoint in the dtype of the result, in CPU memory."""
    return prepared.source.load(prepared.saved_dtype, torch.device("cpu"))


def refitted_layers(prepared: PreparedTraining) -> Collection[str]:
    """Names of the layers whose weights a run changes: by refits, or by gates that are folded into them."""
    changes = prepared.pruning.repairs or prepared.pruning.criterion.learns
    if not changes or prepared.pruning.target.ratio == 0.0:
        return ()
    return {dimension.consumer.module for dimension in prepared.structure}


def finished_model(prepared: PreparedTraining, model: nn.Module, run: PruningRun) -> PreTrainedModel:
    """The result of a run: merged, and quantized again where that was asked for.

    Raises:
        NonFiniteWeightsError: it is to be saved, and a weight is NaN or infinite.
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
        check_finite(finished)  # before it is measured
    if not quantized:
        return finished
    if prepared.options.keep_quantized:
        return _quantized_again(finished, quantization, prepared)
    needed = finished.num_parameters() * max(prepared.saved_dtype.itemsize, 2)
    if prepared.device.type != "cpu" and needed * 1.2 < free_memory(prepared.device):
        finished.to(prepared.device)
    return finished


def is_measurable(prepared: PreparedTraining, merged: PreTrainedModel) -> bool:
    """Whether a result is where the run computes: merged from a quantized base it may be too large for that."""
    if merged.device.type == prepared.computing.type:
        return True
    logger.info("The result is too large to be measured on %s.", prepared.computing)
    return False


def _quantized_again(finished: PreTrainedModel, quantization: Any, prepared: PreparedTraining) -> PreTrainedModel:
    """Quantize a finished model as its base was: through a folder, as everybody's quantized models are made."""
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
    """What a reader of the report has to know of the base; empty where it was not quantized."""
    name = prepared.options.quantization
    if name is None and not prepared.base_quantized:
        return ()
    measured = (
        f"The base was quantized ({name or 'as it was passed in'}) while it was tuned and pruned, and the quality of "
        "the dense model is that of the quantized one; its size and its time are those of the original."
    )
    if prepared.options.keep_quantized:
        return (f"{measured} The result is quantized likewise, after the merge.",)
    if name is None:
        return (
            f"{measured} The result is merged from the dequantized weights, since the model was passed in: it carries "
            "the error of quantization. Pass the name of the checkpoint and a quantization to merge into its weights.",
        )
    dtype = str(prepared.saved_dtype).removeprefix("torch.")
    return (f"{measured} The result is merged in {dtype} from the checkpoint's own weights.",)


def adapter_in_32_bits_(model: nn.Module) -> None:
    """Undo that trl keeps the adapter of a bitsandbytes base in bfloat16: small updates would get lost in rounding."""
    if not is_quantized_model(model):
        return
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.float()


class RememberQuantization(TrainerCallback):
    """Writes into each checkpoint of the run how the base is quantized: the same adapter means two models."""

    def __init__(self, quantization: str | None) -> None:
        self._quantization = quantization

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write it into the checkpoint that the Trainer just wrote."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if folder.is_dir() and state.is_world_process_zero:
            (folder / _STATE_FILE).write_text(json.dumps({"quantization": self._quantization}), encoding="utf-8")


def check_same_quantization(checkpoint: Path, quantization: str | None) -> None:
    """Make sure that a run that is resumed has the base that it was started with.

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
