"""From arithmetic to seconds: a share of the peak, and the traffic of weights that are dequantized anew each time."""

from __future__ import annotations

from loraprune.measure.estimation.estimation_gpus import Gpu

UTILIZATION = 0.35
"""Share of a card's peak that LoRA tuning through transformers reaches. An assumption, not a measurement."""

BANDWIDTH_SHARE = 0.7
"""Share of the memory's bandwidth that copying kernels reach. An assumption."""


def step_seconds(flops: float, gpu: Gpu, *, dequantized: float = 0.0) -> float:
    """Seconds of a training step.

    Args:
        flops: floating point operations of the step.
        gpu: that it runs on.
        dequantized: bytes that are written and read again because weights are dequantized.
    """
    return flops / (gpu.tflops * 1e12 * UTILIZATION) + 2 * dequantized / (gpu.bandwidth * 1e9 * BANDWIDTH_SHARE)
