"""LoRA adapters on disk, those of pruned models too: found, checked, and put on their base."""

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
"""What happened to the base of an adapter that loraprune trained, beside the adapter."""
REFITTED_FILE = "refitted_base_weights.safetensors"
MASKS_FILE = "pst_masks.safetensors"


@dataclass(frozen=True, kw_only=True)
class AdapterFolder:
    """An adapter, before anything of it is loaded.

    Attributes:
        folder: that holds it; of a hub adapter, where it was stored.
        base: checkpoint that it belongs on; ``base_revision``: of a hub checkpoint.
        plan: the groups that are left of the base; None of a base that stays whole.
        dimensions: kinds of dimensions that the plan is of; ``keep_layers``: layers that it leaves alone.
        keeps_zeros: whether zeros of the base stay zero under the adapter.
        masked: whether masks of single weights belong to it.
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
    """What :func:`find_adapter` must know of an adapter that a run of ours saves."""
    values = {
        "format": 1,
        "plan": None if plan is None else plan.to_json(),
        "dimensions": None if dimensions is None else list(dimensions),
        "keep_layers": list(keep_layers),
        "keep_zeros": keeps_zeros,
    }
    return json.dumps(values)


def find_adapter(name: str, *, base: str | None = None, revision: str | None = None) -> AdapterFolder | None:
    """The adapter in a folder or in a hub repository; None where there is none.

    Args:
        name: a folder, or a name on the hub.
        base: to use in place of the one that the adapter names.
        revision: of a hub adapter.

    Raises:
        CheckpointError: it has no weights in safetensors, names no base, is of a kind that cannot be merged, or lies
            in one folder with a whole model.
    """
    name = expanded(name)
    folder = _folder_of(name, revision)
    if folder is None:
        return None
    values = _read(folder / ADAPTER_CONFIG)
    whole = [file for file in MODEL_FILES if (folder / file).is_file()]
    if whole:
        raise CheckpointError(
            f"{name} holds an adapter ({ADAPTER_CONFIG}) and a whole model ({whole[0]}): which of them is meant cannot "
            "be told. Move one of them into a folder of its own."
        )
    if not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(
            f"{name} has an {ADAPTER_CONFIG} and no {WEIGHTS_FILE}: weights are read from there only."
        )
    base_name = base or values.get("base_model_name_or_path")
    if not base_name:
        raise CheckpointError(f"{name} is an adapter that names no base. Name the base with --base.")
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
        raise CheckpointError(f"{path} is no mapping of names to values. Save the adapter again.")
    return values


def _check_kind(name: str, values: Mapping[str, Any]) -> None:
    from peft import PEFT_TYPE_TO_TUNER_MAPPING, PeftType

    kind = str(values.get("peft_type"))
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType(kind)) if kind in PeftType.__members__ else None
    if not hasattr(tuner, "merge_and_unload"):
        raise CheckpointError(
            f"{name} is an adapter of type {kind}, which cannot be merged into its base. Adapters of the kind of LORA "
            "are read."
        )


def _with_facts(found: AdapterFolder, name: str) -> AdapterFolder:
    folder, masked = found.folder, (found.folder / MASKS_FILE).is_file()
    if not (folder / FACTS_FILE).is_file():
        if masked or (folder / REFITTED_FILE).is_file():
            raise CheckpointError(
                f"{name} is the adapter of a model that loraprune pruned, and {FACTS_FILE}, which says what was cut, "
                "is missing. Name the finished checkpoint instead."
            )
        return found
    values = _read(folder / FACTS_FILE)
    if values.get("format") != 1:
        raise CheckpointError(f"{folder / FACTS_FILE} is of a version that this loraprune cannot read. Update it.")
    plan, dimensions = values.get("plan"), values.get("dimensions")
    return replace(
        found,
        plan=None if plan is None else Plan.from_json(plan),
        dimensions=None if dimensions is None else tuple(dimensions),
        keep_layers=tuple(values.get("keep_layers") or ()),
        keeps_zeros=bool(values.get("keep_zeros")),
        masked=masked,
    )


# Adapters put on their base, which is cut, refitted or masked first where the adapter was trained so.


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
