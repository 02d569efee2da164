"""Adapters put on their base, which is cut, refitted or masked first where the adapter was trained so."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from loraprune.checkpoint.adapter import MASKS_FILE, REFITTED_FILE, AdapterFolder
from loraprune.checkpoint.load import CheckpointError
from loraprune.checkpoint.save import finish
from loraprune.layers.unwrap import base_layer
from loraprune.sparsity.masked_lora import keep_zeros_
from loraprune.sparsity.masked_product import unpacked
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Structure
from loraprune.structure.plan import Plan
from loraprune.surgery.merging import merged
from loraprune.surgery.slicing import slice_

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def with_adapter(
    model: PreTrainedModel, adapter: AdapterFolder, name: str, *, merge: bool, dtype: torch.dtype
) -> nn.Module:
    """Put an adapter on its base, which is used up: cut to the adapter's plan first where it has one.

    Args:
        model: the base.
        adapter: to put on it.
        name: of the adapter, for messages.
        merge: give back a plain model with the adapter merged, instead of peft's around it.
        dtype: of the merged model.

    Raises:
        CheckpointError: the adapter does not fit the base.
    """
    structure: Structure | None = None
    try:
        if adapter.plan is not None:
            structure = describe(model, adapter.dimensions, adapter.keep_layers)
            adapter.plan.check(structure)
            slice_(model, structure, Plan.full(structure), adapter.plan)
            _restore_refitted_(model, adapter.folder)
        peft_model = _attached(model, adapter.folder, name)
        if adapter.keeps_zeros:
            keep_zeros_(peft_model)
    except CheckpointError:
        raise
    except (ValueError, RuntimeError, KeyError, AttributeError) as error:
        text = " ".join(str(error).split())
        raise CheckpointError(f"The adapter {name} does not fit its base {adapter.base}: {text[:300]}") from error
    if not merge:
        if adapter.masked:
            raise CheckpointError(f"{name} masks the sum of weights and adapter; it can be measured merged only.")
        return peft_model.eval()
    if structure is None or adapter.plan is None:
        plain = merged(peft_model, dtype)
    else:
        plain = finish(peft_model, structure, adapter.plan, dtype=dtype)
    if adapter.masked:
        _mask_(plain, adapter.folder)
    return plain.eval()


def _attached(model: PreTrainedModel, folder: Path, name: str) -> Any:
    """Peft's model with the adapter, each of whose tensors found its place.

    Raises:
        CheckpointError: one did not, or a place is left without.
    """
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        device = next(model.parameters()).device
        adapted: Any = PeftModel.from_pretrained(model, str(folder), torch_device=str(device))
        # The same once more, for what it tells: from_pretrained keeps to itself which tensors were left over.
        result = adapted.load_adapter(str(folder), "default", torch_device=str(device))
    for keys, what in (
        (result.unexpected_keys, "weights match no layer of the base"),
        (result.missing_keys, "of its layers' weights are missing from its file"),
    ):
        if keys:
            raise CheckpointError(f"The adapter {name} does not fit: {len(keys)} {what}, the first is {keys[0]}.")
    return adapted


@torch.no_grad()
def _restore_refitted_(model: PreTrainedModel, folder: Path) -> None:
    path = folder / REFITTED_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} is the adapter of a pruned model, and {REFITTED_FILE} is missing there.")
    for name, weight in load_file(path).items():
        module, _, parameter = name.rpartition(".")
        target = getattr(base_layer(model.get_submodule(module)), parameter)
        if target.shape != weight.shape:
            raise CheckpointError(f"{path} holds {name} of {tuple(weight.shape)}; the base has {tuple(target.shape)}.")
        target.data.copy_(weight)


@torch.no_grad()
def _mask_(model: nn.Module, folder: Path) -> None:
    """Set weights to zero that a run with the criterion ``pst`` has masked."""
    from transformers.pytorch_utils import Conv1D

    for name, mask in load_file(folder / MASKS_FILE).items():
        layer: Any = model.get_submodule(name)
        weight = layer.weight.data.T if isinstance(layer, Conv1D) else layer.weight.data
        weight *= unpacked(mask.to(weight.device), weight.shape)
