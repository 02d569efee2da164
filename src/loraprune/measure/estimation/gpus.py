"""Accelerators, and conversion of arithmetic to seconds."""

from __future__ import annotations

from dataclasses import dataclass

from loraprune.measure.estimation.links import NVLINK_3, NVLINK_4, PCIE_3, PCIE_4, PCIE_5, Link

# Common accelerators: their memory available to a run, and their computing speed.

GIB = 1024**3

CONTEXT = 1.0
"""GiB used by the CUDA context, cuBLAS workspaces and loaded kernels. An assumption."""

FRAGMENTED = 0.05
"""Share of the memory that the caching allocator reserves but cannot use. An assumption."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of accelerator.

    Attributes:
        name: common name.
        memory: GiB that the driver reports.
        tflops: peak of dense matrix products in bfloat16 with 32-bit sums; without bfloat16, of 32 bits.
        bandwidth: memory bandwidth in GB per second.
        single: peak in 32 bits without TF32, used for the moments and least squares of a repair.
        link: connection to other GPUs.
        bfloat16: whether it supports bfloat16; if not, ``loraprune prune`` trains in 32 bits.
    """

    name: str
    memory: float
    tflops: float
    bandwidth: float
    single: float
    link: Link
    bfloat16: bool = True

    @property
    def usable(self) -> float:
        """Bytes available to tensors."""
        return (self.memory * (1 - FRAGMENTED) - CONTEXT) * GIB


GPUS = (
    Gpu(name="T4 16 GB", memory=15.0, tflops=8.1, bandwidth=320, single=8.1, link=PCIE_3, bfloat16=False),
    Gpu(name="L4 24 GB", memory=22.5, tflops=121, bandwidth=300, single=30.3, link=PCIE_4),
    Gpu(name="A10G 24 GB", memory=22.1, tflops=70, bandwidth=600, single=35, link=PCIE_4),
    Gpu(name="RTX 3090 24 GB", memory=24.0, tflops=71, bandwidth=936, single=35.6, link=PCIE_4),
    Gpu(name="RTX 4090 24 GB", memory=24.0, tflops=165, bandwidth=1008, single=82.6, link=PCIE_4),
    Gpu(name="RTX 5090 32 GB", memory=31.8, tflops=210, bandwidth=1792, single=104.8, link=PCIE_5),
    Gpu(name="A100 40 GB", memory=39.4, tflops=312, bandwidth=1555, single=19.5, link=NVLINK_3),
    Gpu(name="L40S 48 GB", memory=44.7, tflops=362, bandwidth=864, single=91.6, link=PCIE_4),
    Gpu(name="A100 80 GB", memory=79.2, tflops=312, bandwidth=2039, single=19.5, link=NVLINK_3),
    Gpu(name="H100 80 GB", memory=79.2, tflops=989, bandwidth=3350, single=67, link=NVLINK_4),
    Gpu(name="H200 141 GB", memory=139.8, tflops=989, bandwidth=4800, single=67, link=NVLINK_4),
)
"""Accelerators by memory. Dense peaks and bandwidths are from the vendor's data sheets; H100 and H200 are SXM."""


# Conversion of arithmetic to seconds: a share of the peak, plus memory traffic of weights that are dequantized each
# time.

UTILIZATION = 0.35
"""Share of a card's peak that LoRA tuning with transformers reaches. An assumption, not a measurement."""

BANDWIDTH_SHARE = 0.7
"""Share of the memory's bandwidth that copying kernels reach. An assumption."""


def step_seconds(flops: float, gpu: Gpu, *, dequantized: float = 0.0) -> float:
    """Return the seconds of a training step.

    Args:
        flops: floating point operations of the step.
        gpu: accelerator of the run.
        dequantized: bytes that dequantizing weights writes and reads again.
    """
    return flops / (gpu.tflops * 1e12 * UTILIZATION) + 2 * dequantized / (gpu.bandwidth * 1e9 * BANDWIDTH_SHARE)
