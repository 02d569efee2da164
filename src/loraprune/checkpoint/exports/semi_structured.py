"""Folders of packed 2:4 weights, which load as a model with torch's semi-structured tensors.

torch's tensors know no file format of their own and must not be pickled, so the folder holds kept weights and their
places (:mod:`loraprune.checkpoint.exports.two_four`), and loading it makes the tensors anew.
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
"""Version of the folder that this code writes and reads."""

DESCRIPTION = "semi_structured.json"
_VALUES, _PLACES = ".kept", ".places"


def write_semi_structured(folder: Path, output: Path, *, overwrite: bool = False) -> SparseFolderResult:
    """Write a 2:4 checkpoint as a folder for :func:`load_semi_structured`.

    Args:
        folder: a checkpoint with 2:4 zeros, in 16 bits.
        output: folder to make; it appears complete or not at all.
        overwrite: replace an existing folder.

    Raises:
        RuntimeFormatError: this machine could not run it, or the checkpoint is not 2:4.
    """
    check_folder(folder, output, overwrite=overwrite)
    read_config(folder)
    check_semi_structured()
    found = read_sparse_checkpoint(folder)
    check_semi_structured(dtype=found.checkpoint.load(weight_of(found.sparse[0])).dtype)
    return write_packed(found, output, overwrite=overwrite)


def write_packed(found: SparseCheckpoint, output: Path, *, overwrite: bool = False) -> SparseFolderResult:
    """Write the folder; needs no special hardware."""
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
            # Not named as a plain checkpoint's weights, which transformers would load without what it does not know.
            written.append(f"semi_structured-{number:05}-of-{len(files):05}.safetensors")
            save_file(tensors, folder / written[-1], metadata={"format": "pt"})
        description = {"format": _FORMAT, "files": written}
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2), encoding="utf-8")

    return write_sparse_folder(found, output, write, overwrite=overwrite)


def load_semi_structured(folder: str | Path, device: torch.device | str = "cuda") -> PreTrainedModel:
    """Load a folder that ``loraprune export --format semi-structured`` wrote, onto a GPU, for inference.

    Raises:
        RuntimeFormatError: it is no such folder, or the device does not multiply such tensors.
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
    """The model of such a folder: with torch's semi-structured tensors on a GPU, and with ordinary ones elsewhere.

    Args:
        folder: that holds it.
        device: to load onto.
        dtype: of ordinary weights; None leaves them theirs, as semi-structured ones keep theirs.
    """
    if device.type == "cuda":
        return load_semi_structured(folder, device)
    unpacked: Any = load_unpacked(folder)
    loaded: PreTrainedModel = unpacked.to(device=device, dtype=dtype)
    return loaded


def load_unpacked(folder: Path, files: list[Path] | None = None) -> PreTrainedModel:
    """The model of such a folder with ordinary weights; needs no special hardware."""
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
            f"{folder} has no {DESCRIPTION}: name a folder that `loraprune export --format semi-structured` wrote."
        )
    try:
        description = read_json(file)
    except (OSError, ValueError) as error:
        raise RuntimeFormatError(f"{file} cannot be read: {error}. Export the checkpoint again.") from error
    if not isinstance(description, dict):
        raise RuntimeFormatError(f"{file} is no object with fields. Export the checkpoint again.")
    if description.get("format") != _FORMAT:
        raise RuntimeFormatError(
            f"{file} is of format {description.get('format')!r}, and this version of loraprune reads {_FORMAT}: export "
            "the checkpoint again."
        )
    if not isinstance(description.get("files"), list):
        raise RuntimeFormatError(f"{file} lists no files. Export the checkpoint again.")
    return [folder / Path(str(name)).name for name in description["files"]]


# 2:4 weights as torch's semi-structured tensors, for inference on hardware that multiplies them faster.

_DTYPES = (torch.float16, torch.bfloat16)
_TRIAL = 128
"""Width of a matrix that every backend takes."""

_ANYWHERE = "The plain checkpoint computes the same anywhere."


def check_semi_structured(device: torch.device | str = "cuda", dtype: torch.dtype = torch.bfloat16) -> None:
    """Make sure that a device multiplies semi-structured tensors, by multiplying one.

    Raises:
        RuntimeFormatError: it does not; the message says why.
    """
    device = torch.device(device)
    if dtype not in _DTYPES:
        raise RuntimeFormatError(
            f"Semi-structured tensors are multiplied in float16 or bfloat16, and the weights are {_name(dtype)}: load "
            "the model with dtype=torch.bfloat16, or save it so first."
        )
    if device.type != "cuda" or not torch.cuda.is_available():
        found = f"the device is {device}" if device.type != "cuda" else "torch sees none here"
        raise RuntimeFormatError(f"Semi-structured tensors need a CUDA device, and {found}. {_ANYWHERE}")
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        raise RuntimeFormatError(
            "Semi-structured tensors need a GPU of compute capability 8.0 (Ampere) or more, and "
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
            f"torch {torch.__version__} multiplies semi-structured tensors on {torch.cuda.get_device_name(device)} to "
            f"wrong results. {_ANYWHERE}"
        )


def _multiplies_right(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product with a semi-structured tensor is what it should be.

    A backend may be missing, or not know the GPU: that of CUTLASS wants compute capability 8 and no more.
    """
    weight = torch.ones(_TRIAL, _TRIAL, device=device, dtype=dtype)
    weight[:, ::2] = 0
    product = nn.functional.linear(weight, _semi_structured(weight))
    return bool((product == _TRIAL // 2).all())


def _semi_structured(weight: torch.Tensor) -> torch.Tensor:
    """A weight as a semi-structured tensor of the backend that this torch was built with; RuntimeError if it cannot."""
    backends: Any = torch.sparse
    backend = (
        backends.SparseSemiStructuredTensorCUSPARSELT
        if torch.backends.cusparselt.is_available()
        else backends.SparseSemiStructuredTensorCUTLASS
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the interface is a prototype
        converted: torch.Tensor = backend.from_dense(weight.detach().contiguous())
    return converted


def to_semi_structured_(model: nn.Module) -> int:
    """Replace every 2:4 weight of the linear layers of a model, for inference; returns how many.

    Layers of other shapes than the hardware takes stay dense. The model can be neither trained nor saved afterwards.

    Raises:
        RuntimeFormatError: its device or dtype will not do, or nothing can be replaced.
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
        raise RuntimeFormatError(f"torch takes none of the {len(layers)} 2:4-sparse layers: {reason}")
    return replaced


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
