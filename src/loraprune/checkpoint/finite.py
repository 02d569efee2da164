"""Checks for NaN and infinite weights before a model is saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from loraprune.processes.sharding import whole

if TYPE_CHECKING:
    from torch import Tensor


class NonFiniteWeightsError(ArithmeticError):
    """A weight is NaN or infinite, so the model was not saved."""


def check_finite(model: nn.Module) -> None:
    """Make sure that all tensors of a model are finite.

    Raises:
        NonFiniteWeightsError: a tensor is not; see :func:`check_finite_tensors`.
    """
    check_finite_tensors(model.state_dict().items())


def check_finite_tensors(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Make sure that named tensors are finite. Each tensor is read once and not kept.

    Raises:
        NonFiniteWeightsError: a tensor is not. The message names the first one and counts its NaN and Inf.
    """
    broken = list(non_finite(tensors))
    if not broken:
        return
    name, dtype, nans, infinities = broken[0]
    kind = str(dtype).removeprefix("torch.")
    others = f", as do {len(broken) - 1} other tensors" if len(broken) > 1 else ""
    how = "They come from training or calibration: lower the learning rate, or check the data."
    if dtype == torch.float16 and infinities:
        how = "float16 cannot represent numbers above 65,504. Save the model in another dtype, with --dtype bfloat16."
    raise NonFiniteWeightsError(
        f"{name} holds {nans:,} NaN and {infinities:,} Inf ({kind}){others}: nothing was saved. {how}"
    )


def non_finite(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, torch.dtype, int, int]]:
    """Yield name, dtype, number of NaN and number of infinities of each tensor that is not finite."""
    for name, tensor in tensors:
        nans, infinities = _count(whole(tensor))
        if nans or infinities:
            yield name, tensor.dtype, nans, infinities


def _count(tensor: Tensor) -> tuple[int, int]:
    """Return how many numbers of a tensor are NaN, and how many are infinite."""
    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
        return 0, 0
    if type(tensor) not in (torch.Tensor, nn.Parameter):
        tensor = tensor.dequantize()  # a quantized tensor of torchao
    if tensor.element_size() < 2:
        tensor = tensor.float()  # aminmax does not take 8-bit floats
    least, most = torch.aminmax(tensor.detach())
    if bool(torch.isfinite(least)) and bool(torch.isfinite(most)):
        return 0, 0
    return int(tensor.isnan().sum()), int(tensor.isinf().sum())
