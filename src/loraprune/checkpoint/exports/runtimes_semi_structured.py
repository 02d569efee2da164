"""2:4 weights as torch's semi-structured tensors, for inference on hardware that multiplies them faster."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from loraprune.checkpoint.exports.errors import RuntimeFormatError
from loraprune.checkpoint.exports.sparse_checkpoint import HOW_TO_MAKE_ONE
from loraprune.checkpoint.exports.two_four import is_two_four

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
