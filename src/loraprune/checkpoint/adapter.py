"""LoRA adapters on disk, also those of pruned models: find them, check them, and attach them to their base."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from loraprune.checkpoint.names import expanded
from loraprune.checkpoint.reading import ADAPTER_CONFIG, CheckpointError, reason_of
from loraprune.checkpoint.save import finish
from loraprune.checkpoint.weight_files import MODEL_FILES
from loraprune.layers.unwrap import base_layer
from loraprune.record.codec import read_json
from loraprune.record.history import stored_file
from loraprune.sparsity.masked_product import unpacked
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Structure
from loraprune.structure.plan import Plan
from loraprune.surgery.merging import merged
from loraprune.surgery.slicing import slice_

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

WEIGHTS_FILE = "adapter_model.safetensors"
FACTS_FILE = "loraprune_adapter.json"
"""File beside an adapter that loraprune trained; it records how the base was pruned."""
REFITTED_FILE = "refitted_base_weights.safetensors"
MASKS_FILE = "pst_masks.safetensors"


@dataclass(frozen=True, kw_only=True)
class AdapterFolder:
    """An adapter that is not loaded yet.

    Attributes:
        folder: folder of the adapter; for a Hub adapter, its folder in the cache.
        base: checkpoint of the base model.
        base_revision: revision of a base on the Hub.
        plan: groups of the base that are kept; None if the base is not cut.
        dimensions: kinds of dimensions in the plan.
        keep_layers: layers that the plan does not cut.
        keeps_zeros: whether zeros of the base stay zero under the adapter.
        masked: whether the adapter comes with masks of single weights.
    """

    folder: Path
    base: str
    base_revision: str | None = None
    plan: Plan | None = None
    dimensions: tuple[str, ...] | None = None
    keep_layers: tuple[int | str, ...] = ()
    keeps_zeros: bool = False
    masked: bool = False


def facts_text(
    *,
    plan: Plan | None = None,
    dimensions: Sequence[str] | None = None,
    keep_layers: Sequence[int | str] = (),
    keeps_zeros: bool = False,
) -> str:
    """Return the text of ``FACTS_FILE``, which :func:`find_adapter` reads."""
    values = {
        "format": 1,
        "plan": None if plan is None else plan.to_json(),
        "dimensions": None if dimensions is None else list(dimensions),
        "keep_layers": list(keep_layers),
        "keep_zeros": keeps_zeros,
    }
    return json.dumps(values)


def find_adapter(name: str, *, base: str | None = None, revision: str | None = None) -> AdapterFolder | None:
    """Find the adapter in a folder or in a Hub repository. Return None if there is none.

    Args:
        name: a folder, or a name on the Hub.
        base: checkpoint to use instead of the base that the adapter names.
        revision: revision of a Hub adapter.

    Raises:
        CheckpointError: the adapter has no safetensors weights, names no base, has a type that cannot be merged, or
            shares its folder with a whole model.
    """
    name = expanded(name)
    folder = _folder_of(name, revision)
    if folder is None:
        return None
    values = _read(folder / ADAPTER_CONFIG)
    whole = [file for file in MODEL_FILES if (folder / file).is_file()]
    if whole:
        raise CheckpointError(
            f"{name} holds an adapter ({ADAPTER_CONFIG}) and a whole model ({whole[0]}), so it is not clear which one "
            "to load. Move one of them to another folder."
        )
    if not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(
            f"{name} has an {ADAPTER_CONFIG} but no {WEIGHTS_FILE}. Save the adapter again, as safetensors."
        )
    base_name = base or values.get("base_model_name_or_path")
    if not base_name:
        raise CheckpointError(f"The adapter {name} names no base. Name the base with --base.")
    _check_kind(name, values)
    return _with_facts(
        AdapterFolder(folder=folder, base=str(base_name), base_revision=None if base else values.get("revision")), name
    )


def _folder_of(name: str, revision: str | None) -> Path | None:
    path = Path(name).expanduser()
    if path.exists():
        return path if (path / ADAPTER_CONFIG).is_file() else None
    if name.startswith((".", "/", "~")):
        return None
    found = stored_file(name, ADAPTER_CONFIG, revision)
    for file in (WEIGHTS_FILE, FACTS_FILE, REFITTED_FILE, MASKS_FILE) if found is not None else ():
        stored_file(name, file, revision)
    return None if found is None else found.parent


def _read(path: Path) -> Mapping[str, Any]:
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Save the adapter again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a JSON object. Save the adapter again.")
    return values


def _check_kind(name: str, values: Mapping[str, Any]) -> None:
    from peft import PEFT_TYPE_TO_TUNER_MAPPING, PeftType

    kind = str(values.get("peft_type"))
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType(kind)) if kind in PeftType.__members__ else None
    if not hasattr(tuner, "merge_and_unload"):
        raise CheckpointError(
            f"{name} is an adapter of type {kind}, which cannot be merged into its base. Use an adapter of a type that "
            "can, such as LORA."
        )


def _with_facts(found: AdapterFolder, name: str) -> AdapterFolder:
    folder, masked = found.folder, (found.folder / MASKS_FILE).is_file()
    if not (folder / FACTS_FILE).is_file():
        if masked or (folder / REFITTED_FILE).is_file():
            raise CheckpointError(
                f"{name} is the adapter of a model that loraprune pruned, but {FACTS_FILE}, which records what was "
                "cut, is missing. Name the finished checkpoint instead."
            )
        return found
    values = _read(folder / FACTS_FILE)
    if values.get("format") != 1:
        raise CheckpointError(f"This version of loraprune cannot read {folder / FACTS_FILE}. Update loraprune.")
    plan, dimensions = values.get("plan"), values.get("dimensions")
    return replace(
        found,
        plan=None if plan is None else Plan.from_json(plan),
        dimensions=None if dimensions is None else tuple(dimensions),
        keep_layers=tuple(values.get("keep_layers") or ()),
        keeps_zeros=bool(values.get("keep_zeros")),
        masked=masked,
    )


def with_adapter(
    model: PreTrainedModel, adapter: AdapterFolder, name: str, *, merge: bool, dtype: torch.dtype
) -> nn.Module:
    """Attach an adapter to its base. If the adapter has a plan, the base is first cut to it.

    Args:
        model: the base, modified in place.
        adapter: adapter to attach.
        name: name of the adapter, for messages.
        merge: return a plain model with the adapter merged, instead of a ``PeftModel``.
        dtype: dtype of the merged model.

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
            from loraprune.sparsity.masked_lora import keep_zeros_  # late: peft takes seconds to import

            keep_zeros_(peft_model)
    except CheckpointError:
        raise
    except (ValueError, RuntimeError, KeyError, AttributeError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"The adapter {name} does not fit its base {adapter.base}: {reason_of(error)}. Save it again, or name its "
            "base with --base."
        ) from error
    if not merge:
        if adapter.masked:
            raise CheckpointError(f"{name} masks the sum of weights and adapter, so it can only be used merged.")
        return peft_model.eval()
    if structure is None or adapter.plan is None:
        plain = merged(peft_model, dtype)
    else:
        plain = finish(peft_model, structure, adapter.plan, dtype=dtype)
    if adapter.masked:
        _mask_(plain, adapter.folder)
    return plain.eval()


def _attached(model: PreTrainedModel, folder: Path, name: str) -> Any:
    """Return the ``PeftModel`` with the adapter, after a check that all its tensors were loaded.

    Raises:
        CheckpointError: a tensor matches no layer, or a layer got no tensor.
    """
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        device = next(model.parameters()).device
        adapted: Any = PeftModel.from_pretrained(model, str(folder), torch_device=str(device))
        # Loaded a second time because from_pretrained does not return which keys were missing or unexpected.
        result = adapted.load_adapter(str(folder), "default", torch_device=str(device))
    for keys, what in (
        (result.unexpected_keys, "weights match no layer of the base"),
        (result.missing_keys, "weights of its layers are missing from its file"),
    ):
        if keys:
            raise CheckpointError(f"The adapter {name} does not fit: {len(keys)} {what}, the first is {keys[0]}.")
    return adapted


@torch.no_grad()
def _restore_refitted_(model: PreTrainedModel, folder: Path) -> None:
    path = folder / REFITTED_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} is the adapter of a pruned model, but its {REFITTED_FILE} is missing.")
    for name, weight in load_file(path).items():
        module, _, parameter = name.rpartition(".")
        target = getattr(base_layer(model.get_submodule(module)), parameter)
        if target.shape != weight.shape:
            raise CheckpointError(f"{path} holds {name} of {tuple(weight.shape)}; the base has {tuple(target.shape)}.")
        target.data.copy_(weight)


@torch.no_grad()
def _mask_(model: nn.Module, folder: Path) -> None:
    """Set the weights to zero that a run with the criterion ``pst`` masked."""
    from transformers.pytorch_utils import Conv1D

    for name, mask in load_file(folder / MASKS_FILE).items():
        layer: Any = model.get_submodule(name)
        weight = layer.weight.data.T if isinstance(layer, Conv1D) else layer.weight.data
        weight *= unpacked(mask.to(weight.device), weight.shape)
