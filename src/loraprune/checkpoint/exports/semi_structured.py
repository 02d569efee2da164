"""Folders of packed 2:4 weights, which load as a model with torch's semi-structured tensors.

These tensors have no file format and must not be pickled. So the folder holds the kept weights and their positions
(:mod:`loraprune.checkpoint.exports.two_four`), and loading makes the tensors again.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError, read_config
from loraprune.checkpoint.exports.sparse_checkpoint import (
    HOW_TO_MAKE_ONE,
    SparseCheckpoint,
    SparseFolderResult,
    check_folder,
    empty_model,
    read_sparse_checkpoint,
    weight_of,
    write_sparse_folder,
)
from loraprune.checkpoint.exports.two_four import is_two_four, pack, unpack
from loraprune.checkpoint.reading import reading
from loraprune.record.codec import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FORMAT = 1
"""Version of the folder format that this code writes and reads."""

DESCRIPTION = "semi_structured.json"
_VALUES, _PLACES = ".kept", ".places"


def write_semi_structured(folder: Path, output: Path, *, overwrite: bool = False) -> SparseFolderResult:
    """Write a 2:4 checkpoint as a folder for :func:`load_semi_structured`.

    Args:
        folder: a checkpoint with 2:4 zeros, in 16 bits.
        output: folder to write; it appears complete or not at all.
        overwrite: replace an existing folder.

    Raises:
        RuntimeFormatError: this machine cannot run the result, or the checkpoint is not 2:4.
    """
    check_folder(folder, output, overwrite=overwrite)
    read_config(folder)
    check_semi_structured()
    found = read_sparse_checkpoint(folder)
    check_semi_structured(dtype=found.checkpoint.load(weight_of(found.sparse[0])).dtype)
    return write_packed(found, output, overwrite=overwrite)


def write_packed(found: SparseCheckpoint, output: Path, *, overwrite: bool = False) -> SparseFolderResult:
    """Write the folder. Needs no special hardware."""
    from safetensors.torch import save_file

    packed = {weight_of(name) for name in found.sparse}

    def write(files: Mapping[Path, list[str]], folder: Path) -> None:
        written = []
        for number, names in enumerate(files.values(), start=1):
            tensors: dict[str, torch.Tensor] = {}
            for name in names:
                tensor = found.checkpoint.load(name)
                if name in packed:
                    tensors[name + _VALUES], tensors[name + _PLACES] = pack(tensor)
                else:
                    tensors[name] = tensor
            # Another name than that of plain weights, which transformers would load without the packed tensors.
            written.append(f"semi_structured-{number:05}-of-{len(files):05}.safetensors")
            save_file(tensors, folder / written[-1], metadata={"format": "pt"})
        description = {"format": _FORMAT, "files": written}
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2), encoding="utf-8")

    return write_sparse_folder(found, output, write, overwrite=overwrite)


def load_semi_structured(folder: str | Path, device: torch.device | str = "cuda") -> PreTrainedModel:
    """Load a folder that ``loraprune export --format semi-structured`` wrote, onto a GPU, for inference.

    Raises:
        RuntimeFormatError: it is not such a folder, or the device cannot multiply such tensors.
    """
    folder = Path(folder)
    files = _files(folder)
    check_semi_structured(device)
    model: Any = load_unpacked(folder, files)
    to_semi_structured_(model.to(device))
    loaded: PreTrainedModel = model
    return loaded


def is_packed(folder: Path) -> bool:
    """Whether a folder holds packed 2:4 weights."""
    return (folder / DESCRIPTION).is_file()


def load_packed(folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load packed 2:4 weights, as torch's semi-structured tensors on a GPU and as dense tensors elsewhere.

    Args:
        folder: folder of the packed weights.
        device: device to load onto.
        dtype: dtype of dense weights; None keeps the stored one. Semi-structured weights always keep it.
    """
    if device.type == "cuda":
        return load_semi_structured(folder, device)
    unpacked: Any = load_unpacked(folder)
    loaded: PreTrainedModel = unpacked.to(device=device, dtype=dtype)
    return loaded


def load_unpacked(folder: Path, files: list[Path] | None = None) -> PreTrainedModel:
    """Load packed 2:4 weights as dense tensors. Needs no special hardware."""
    from safetensors.torch import load_file
    from transformers import GenerationConfig

    tensors: dict[str, torch.Tensor] = {}
    for file in files if files is not None else _files(folder):
        with reading(f"The weights in {file} cannot be loaded", "Export the checkpoint again."):
            tensors.update(load_file(file))
    for key in [key for key in tensors if key.endswith(_VALUES)]:
        name = key.removesuffix(_VALUES)
        tensors[name] = unpack(tensors.pop(key), tensors.pop(name + _PLACES))
    empty: Any = empty_model(folder)
    model: PreTrainedModel = type(empty).from_pretrained(
        None, config=empty.config, state_dict=tensors, dtype=empty.config.dtype
    )
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def _files(folder: Path) -> list[Path]:
    file = folder / DESCRIPTION
    if not file.is_file():
        raise RuntimeFormatError(
            f"{folder} has no {DESCRIPTION}. Name a folder that `loraprune export --format semi-structured` wrote."
        )
    try:
        description = read_json(file)
    except (OSError, ValueError) as error:
        raise RuntimeFormatError(f"{file} cannot be read: {error}. Export the checkpoint again.") from error
    if not isinstance(description, dict):
        raise RuntimeFormatError(f"{file} is not a JSON object. Export the checkpoint again.")
    if description.get("format") != _FORMAT:
        raise RuntimeFormatError(
            f"{file} has the format {description.get('format')!r}, but this version of loraprune reads {_FORMAT}. "
            "Export the checkpoint again."
        )
    if not isinstance(description.get("files"), list):
        raise RuntimeFormatError(f"{file} lists no files. Export the checkpoint again.")
    return [folder / Path(str(name)).name for name in description["files"]]


_DTYPES = (torch.float16, torch.bfloat16)
_TRIAL = 128
"""Width of a matrix that every backend supports."""

_ANYWHERE = "The plain checkpoint computes the same on any device."


def check_semi_structured(device: torch.device | str = "cuda", dtype: torch.dtype = torch.bfloat16) -> None:
    """Make sure that a device multiplies semi-structured tensors, by multiplying one.

    Raises:
        RuntimeFormatError: it does not; the message says why.
    """
    device = torch.device(device)
    if dtype not in _DTYPES:
        raise RuntimeFormatError(
            f"Semi-structured tensors must be float16 or bfloat16, but the weights are {_name(dtype)}. Load the model "
            "with dtype=torch.bfloat16, or first save it in that dtype."
        )
    if device.type != "cuda" or not torch.cuda.is_available():
        found = f"the device is {device}" if device.type != "cuda" else "torch finds none"
        raise RuntimeFormatError(f"Semi-structured tensors need a CUDA device, but {found}. {_ANYWHERE}")
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        raise RuntimeFormatError(
            "Semi-structured tensors need a GPU of compute capability 8.0 (Ampere) or more, but "
            f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}. {_ANYWHERE}"
        )
    try:
        right = _multiplies_right(device, dtype)
    except (RuntimeError, NotImplementedError) as error:
        raise RuntimeFormatError(
            f"torch {torch.__version__} does not multiply semi-structured tensors on "
            f"{torch.cuda.get_device_name(device)}: {str(error).splitlines()[0]} {_ANYWHERE}"
        ) from error
    if not right:
        raise RuntimeFormatError(
            f"torch {torch.__version__} computes wrong products of semi-structured tensors on "
            f"{torch.cuda.get_device_name(device)}. {_ANYWHERE}"
        )


def _multiplies_right(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the product with a semi-structured tensor is correct.

    A backend may be missing or not support the GPU: that of CUTLASS supports only compute capability 8.
    """
    weight = torch.ones(_TRIAL, _TRIAL, device=device, dtype=dtype)
    weight[:, ::2] = 0
    product = nn.functional.linear(weight, _semi_structured(weight))
    return bool((product == _TRIAL // 2).all())


def _semi_structured(weight: torch.Tensor) -> torch.Tensor:
    """Convert a weight for the backend that this torch was built with; RuntimeError if the backend cannot."""
    backends: Any = torch.sparse
    backend = (
        backends.SparseSemiStructuredTensorCUSPARSELT
        if torch.backends.cusparselt.is_available()
        else backends.SparseSemiStructuredTensorCUTLASS
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns that the interface is a prototype
        converted: torch.Tensor = backend.from_dense(weight.detach().contiguous())
    return converted


def to_semi_structured_(model: nn.Module) -> int:
    """Replace every 2:4 weight of a model's linear layers by a semi-structured tensor. Return their number.

    Layers whose shapes the hardware does not support stay dense. Afterwards the model can only be used for inference:
    it can be neither trained nor saved.

    Raises:
        RuntimeFormatError: the device or dtype is not supported, or no weight can be replaced.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear)
        and not isinstance(module.weight, torch.sparse.SparseSemiStructuredTensor)
        and is_two_four(module.weight)
    ]
    if not layers:
        raise RuntimeFormatError(f"No linear layer of the model is 2:4-sparse; {HOW_TO_MAKE_ONE}.")
    check_semi_structured(layers[0].weight.device, layers[0].weight.dtype)
    replaced, reason = 0, ""
    for layer in layers:
        try:
            weight = _semi_structured(layer.weight)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            continue
        layer.weight = nn.Parameter(weight, requires_grad=False)
        replaced += 1
    if not replaced:
        raise RuntimeFormatError(f"torch accepts none of the {len(layers)} 2:4-sparse layers: {reason}")
    return replaced


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
