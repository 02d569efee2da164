"""Speed of this machine, from timing a matrix product."""

from __future__ import annotations

import time

import torch

SHARE_OF_PRODUCT = {"cpu": 0.6, "cuda": 0.45}
"""Share of a large matrix product's speed that a training step reaches. Measured on a CPU, assumed elsewhere."""

_SIZES = {"cpu": 512, "cuda": 4096}
_ROUNDS = 3


def product_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations per second of a square matrix product: the best of a few runs."""
    size = _SIZES.get(device.type, 1024)
    left = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    with torch.no_grad():
        for _ in range(_ROUNDS + 1):
            _synchronize(device)
            started = time.perf_counter()
            left @ left
            _synchronize(device)
            best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


def flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating point operations per second that a run can expect.

    Args:
        device: device of the run.
        dtype: dtype of matrix products.
    """
    return product_flops(device, dtype) * SHARE_OF_PRODUCT.get(device.type, SHARE_OF_PRODUCT["cuda"])


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
